//! The report of how well prompts are followed.

use super::comparison::recursion_figure;
use super::figure::{self, draw, Axis, Line, Sign, LEARNED, TEAL};
use super::format::{score, seconds, value};
use super::page::{facts, figure as framed, page, section, Highlight};
use super::{Provenance, ReportError, Table};
use crate::eval::{Calibrated, Evaluation, Scores};
use crate::metric::{Metric, Split};

/// What came of prompts, and what is asked for instead from now on.
pub fn calibration_table(result: &Calibrated) -> Table {
    let kind = result.metric.kind;
    let mut table = Table::new(["wanted", "came out", "asked for now"]);
    for (&prompt, &observed) in result.prompts.iter().zip(&result.observed) {
        let now = result.calibration.prompt(prompt);
        table.row([prompt, observed, now].map(|metric| value(kind, metric)));
    }
    table
}

/// Updates, wall-clock and metrics.
pub fn evaluation_table(evaluation: &Evaluation) -> Table {
    let metrics: Vec<Metric> = evaluation.updates.random.iter().map(|(metric, _)| metric).collect();
    let names = metrics.iter().map(Metric::to_string);
    let fixed =
        [format!("on {} networks", which(evaluation)), "updates".into(), "wall-clock".into()];
    let mut table = Table::new(fixed.into_iter().chain(names));
    let mut row = |name: String, updates: usize, time: String, scores: &Scores| {
        let cells = [name, updates.to_string(), time];
        table.row(cells.into_iter().chain(metrics.iter().map(|&metric| score(scores, metric))));
    };
    let updates = &evaluation.updates;
    row("random initialisation".into(), 0, String::new(), &updates.random);
    let one = &updates.one_step;
    row(format!("one update, prompt {:.3}", one.prompt), 1, seconds(one.seconds), &one.scores);
    for (index, scores) in updates.recursive.after.iter().enumerate().skip(1) {
        let time = seconds(one.seconds * (index + 1) as f64);
        row(format!("{} updates in a row", index + 1), index + 1, time, scores);
    }
    let best = &updates.best_of_k;
    row(format!("best of {}", best.candidates), 1, seconds(best.seconds), &best.scores);
    table
}

/// Whether training has had a part in the networks.
fn which(evaluation: &Evaluation) -> &'static str {
    match evaluation.config.seen {
        true => "seen",
        false => "unseen",
    }
}

/// Mean observed metric for each prompt, by its place between best and start.
fn prompt_table(evaluation: &Evaluation) -> Table {
    let kind = evaluation.metric.kind;
    let mut table = Table::new(["prompt", "mean prompt", "mean observed", "mean difference"]);
    for (place, (prompt, observed)) in mean_columns(evaluation).into_iter().enumerate() {
        table.row([
            (place + 1).to_string(),
            value(kind, prompt),
            value(kind, observed),
            format!("{:+.3}", observed - prompt),
        ]);
    }
    table
}

fn mean_columns(evaluation: &Evaluation) -> Vec<(f64, f64)> {
    let count = evaluation.prompts.len() as f64;
    let mean = |rows: &[Vec<f64>], k: usize| rows.iter().map(|row| row[k]).sum::<f64>() / count;
    let columns = evaluation.prompts.first().map_or(0, Vec::len);
    (0..columns).map(|k| (mean(&evaluation.prompts, k), mean(&evaluation.observed, k))).collect()
}

/// What was observed after one update against what was asked for; an SVG that
/// stands alone.
///
/// # Errors
/// If it cannot be drawn.
pub fn prompting_figure(evaluation: &Evaluation) -> Result<String, ReportError> {
    Ok(figure::standalone(&scatter(evaluation)?))
}

/// The whole report, one HTML file.
///
/// # Errors
/// If a figure cannot be drawn.
pub fn evaluation_page(
    evaluation: &Evaluation,
    provenance: &Provenance,
) -> Result<String, ReportError> {
    let metric = evaluation.metric;
    let test = Metric { split: Split::Test, ..metric };
    let prompts = evaluation.config.prompts;
    let networks = evaluation.networks;
    let which = which(evaluation);
    let body = [
        section(
            "Asked for and observed",
            &format!(
                "One update for each of {prompts} prompts and {networks} {which} random initialisations. \
                 On the diagonal, an update does exactly what it is asked. Prompt alignment is the mean \
                 over networks of R² between prompted and observed {metric}."
            ),
            &framed(&scatter(evaluation)?),
        ),
        section(
            "Updates",
            &format!("Mean and standard error over {networks} networks."),
            &evaluation_table(evaluation).to_html(),
        ),
        section(
            "Updates in a row",
            "Each update starts from the result of the last one, measured anew.",
            &framed(&recursion_figure(&evaluation.updates, metric, test)?),
        ),
        section("By prompt", "From the best to the worst asked for.", &prompt_table(evaluation).to_html()),
        section("Settings", "What is needed to repeat this.", &facts(provenance, &settings(evaluation))),
    ]
    .concat();
    let one = &evaluation.updates.one_step;
    let highlights = [
        Highlight {
            value: format!("{:.3}", evaluation.prompt_alignment),
            label: format!("prompt alignment over {prompts} prompts and {networks} networks"),
        },
        Highlight {
            value: value(test.kind, one.scores.get(test).mean),
            label: format!("mean {test} after one update, prompt {:.3}", one.prompt),
        },
        Highlight {
            value: value(test.kind, evaluation.updates.recursive.scores.get(test).mean),
            label: format!("after {} updates in a row", evaluation.updates.recursive.updates),
        },
        Highlight { value: seconds(one.seconds), label: "wall-clock of one update".into() },
    ];
    let title = format!("Does it do what it is asked? ({})", evaluation.task);
    Ok(page(&title, &provenance.task, &highlights, &body))
}

fn settings(evaluation: &Evaluation) -> Vec<(String, String)> {
    let config = &evaluation.config;
    let pairs = [
        ("seed", config.seed.to_string()),
        ("networks", format!("{} {}", evaluation.networks, which(evaluation))),
        ("prompts", config.prompts.to_string()),
        (
            "worst prompt",
            format!("{} of the network's own {}", config.start_coefficient, evaluation.metric),
        ),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

fn scatter(evaluation: &Evaluation) -> Result<String, ReportError> {
    let metric = evaluation.metric;
    let pairs: Vec<(f64, f64)> = evaluation
        .prompts
        .iter()
        .flatten()
        .copied()
        .zip(evaluation.observed.iter().flatten().copied())
        .filter(|(_, observed)| observed.is_finite())
        .collect();
    let ends = |low: f64, high: f64, v: f64| (low.min(v), high.max(v));
    // Where every update has diverged, the axes still show what was asked for.
    let prompts = evaluation.prompts.iter().flatten().copied().filter(|p| p.is_finite());
    let (low, high) = prompts.fold((f64::MAX, f64::MIN), |(low, high), p| ends(low, high, p));
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let (least, most) = pairs.iter().fold((low, high), |(low, high), p| ends(low, high, p.1));
    let margin = 0.03 * (high - low).max(1e-9);
    let x = Axis::linear(&format!("{metric} asked for"), low - margin..high + margin, 8);
    let lowest = least.min(low) - margin;
    let y = Axis::linear(&format!("{metric} observed"), lowest..most.max(high) + margin, 8);
    let means = mean_columns(evaluation);
    let legend = [
        (Sign::Disc(LEARNED), "one update of one network".to_owned()),
        (Sign::Line(TEAL, Line::Solid), "mean for each prompt".to_owned()),
        (Sign::Rule, "exactly what was asked for".to_owned()),
    ];
    let description = format!("Observed against prompted {metric}");
    draw((960, 620), (x, y), &[&legend], &description, |figure| {
        figure.rule((low, low), (high, high))?;
        for &pair in &pairs {
            figure.disc(pair, 3, LEARNED, 0.35)?;
        }
        figure.curve(&means, TEAL, Line::Solid)?;
        means.iter().try_for_each(|&mean| figure.disc(mean, 4, TEAL, 1.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::alignment::Request;
    use crate::eval::{compare, evaluate, BaselineConfig, ComparisonConfig};
    use crate::eval::{EvaluationConfig, Subject, UpdateConfig};
    use crate::report::comparison_page;
    use crate::tasks::Digits;

    #[test]
    fn updates_that_have_all_diverged_are_reported_too() {
        let digits = Digits::load().unwrap();
        let mut sample = |request: Request<'_>| Ok(vec![f32::NAN; request.start.len()]);
        let mut subject = Subject {
            name: "broken",
            sample: &mut sample,
            metric: Metric::VALIDATION_LOSS,
            best_prompt: 0.1,
        };
        let updates = UpdateConfig { recursive: 2, ..UpdateConfig::default() };
        let config = EvaluationConfig {
            networks: 2,
            prompts: 3,
            seen: true,
            updates: updates.clone(),
            ..EvaluationConfig::default()
        };
        let evaluation = evaluate(&digits, &mut subject, &config, &()).unwrap();
        let page = evaluation_page(&evaluation, &Provenance::default()).unwrap();
        assert!(page.contains("diverged") && page.contains("2 seen random initialisations"));

        let baselines = BaselineConfig {
            steps: 2,
            sgd_rates: vec![0.1],
            adam_rates: vec![0.1],
            grid_steps: 1,
            ..BaselineConfig::default()
        };
        let config = ComparisonConfig { networks: 2, updates, baselines, seed: 0 };
        let comparison = compare(&digits, &mut subject, &config, &()).unwrap();
        let page = comparison_page(&comparison, &Provenance::default()).unwrap();
        assert!(page.contains("diverged") && page.contains("</html>"));
    }
}
