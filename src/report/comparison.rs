//! The report of a comparison with SGD and Adam.

use super::episode::episodes;
use super::figure::{self, draw, Axis, Figure, Line, Sign, ADAM, LEARNED, SGD, TEAL};
use super::format::{estimate, score, seconds, steps, unit_steps, value};
use super::page::{facts, figure as framed, page, section, Highlight};
use super::{Provenance, ReportError, Table};
use crate::eval::{Baseline, Comparison, Scores, Share};
use crate::metric::{Direction, Metric, MetricKind, Split};
use crate::tasks::{Algorithm, Course, Schedule};

/// Updates and steps, wall-clock and metrics of every way to train.
pub fn comparison_table(comparison: &Comparison) -> Table {
    let metric = comparison.metric;
    let test = comparison.test_metric();
    let error = Metric { kind: MetricKind::Error, split: Split::Test };
    let with_error = comparison.updates.random.iter().any(|(m, _)| m == error);
    let mut header = vec![
        "on unseen networks".to_owned(),
        counted(comparison).to_owned(),
        "wall-clock".to_owned(),
        metric.to_string(),
        test.to_string(),
    ];
    if with_error {
        header.push(error.to_string());
    }
    let good = comparison.updates.random.good();
    if let Some(good) = good {
        header.push(format!("at least {}", good.from));
    }
    header.extend([format!("{} to match", comparison.unit.name), "time to match".to_owned()]);
    let mut table = Table::new(header);
    let mut row = |name: String, count: usize, time: String, scores: &Scores, tail: [String; 2]| {
        let mut cells =
            vec![name, count.to_string(), time, score(scores, metric), score(scores, test)];
        if with_error {
            cells.push(score(scores, error));
        }
        if good.is_some() {
            let share = |good: Share| format!("{:.0} %", 100.0 * good.share);
            cells.push(scores.good().map(share).unwrap_or_default());
        }
        cells.extend(tail);
        table.row(cells);
    };
    let empty = || [String::new(), String::new()];
    let updates = &comparison.updates;
    let name = &comparison.optimizer;
    row("random initialisation".into(), 0, String::new(), &updates.random, empty());
    let one = &updates.one_step;
    row(format!("{name}, one update"), 1, seconds(one.seconds), &one.scores, empty());
    let many = &updates.recursive;
    let title = format!("{name}, {} updates in a row", many.updates);
    row(title, many.updates, seconds(many.seconds), &many.scores, empty());
    let best = &updates.best_of_k;
    let title = format!("{name}, best of {}", best.candidates);
    row(title, 1, seconds(best.seconds), &best.scores, empty());
    for baseline in &comparison.baselines {
        let count = baseline.config.steps;
        let tail = [
            unit_steps(comparison, baseline.equivalent_steps, count),
            baseline.seconds_to_match.map(seconds).unwrap_or_default(),
        ];
        let time = seconds(count as f64 * baseline.seconds_per_step);
        row(baseline.name.clone(), count, time, &baseline.scores, tail);
    }
    table
}

/// Curves of SGD and Adam, with the updates of the learned optimizer on the same
/// axes; an SVG that stands alone.
///
/// # Errors
/// If it cannot be drawn.
pub fn comparison_figure(comparison: &Comparison) -> Result<String, ReportError> {
    Ok(figure::standalone(&curves(comparison)?))
}

/// An episode before and after one update, where the task has episodes to look at; an
/// animated SVG that stands alone.
pub fn episode_figure(comparison: &Comparison) -> Option<String> {
    comparison.courses.as_ref().map(|courses| figure::standalone(&film(courses)))
}

fn film([before, after]: &[Course; 2]) -> String {
    let panels = [("random initialisation", before), ("after one update", after)];
    episodes("An episode before and after one update", &panels)
}

/// The whole report, one HTML file.
///
/// # Errors
/// If a figure cannot be drawn.
pub fn comparison_page(
    comparison: &Comparison,
    provenance: &Provenance,
) -> Result<String, ReportError> {
    let test = comparison.test_metric();
    let run = comparison.equivalent_steps.steps_run;
    let networks = comparison.networks;
    let trainers = &comparison.trainers;
    let unit = comparison.unit.name;
    let trained = comparison.config.baselines.trained(networks);
    let some = match trained < networks {
        true => format!(" {trainers} train the first {trained} of them."),
        false => String::new(),
    };
    let spent = match comparison.unit.per_step {
        1 => "",
        _ => {
            " Updates stand behind the environment steps of the episodes that their networks were \
             measured with before; a choice among candidates measures all of them."
        }
    };
    let body = [
        section(
            &format!("One update beside {trainers}"),
            &format!(
                "Mean {test} of the same {networks} random initialisations, none of which was used in \
                 training {}.{some} Bands are two standard errors. The learning rates called best are the ones \
                 of a grid that end with the best {}. Rings mark where a curve reaches the dashed line.{}",
                comparison.optimizer, comparison.metric, spent
            ),
            &framed(&curves(comparison)?),
        ),
        section(
            "All figures",
            &format!(
                "Mean and standard error over {networks} networks.{some} Wall-clock is that of one network, \
                 without other work on the machine: an update includes measuring the network first, a \
                 step includes no measurement. {unit} to match: the first at which the mean {test} is that \
                 of one update."
            ),
            &comparison_table(comparison).to_html(),
        ),
        comparison.courses.as_ref().map_or_else(String::new, |courses| {
            section(
                "An episode before and after one update",
                "The first of the networks, in one test episode, with the same luck.",
                &framed(&film(courses)),
            )
        }),
        section(
            "Updates in a row",
            "Each update starts from the result of the last one, measured anew.",
            &framed(&recursion(comparison)?),
        ),
        section(
            "Learning rates tried",
            &format!(
                "Chosen by {} over {} {} of {} networks.",
                comparison.metric,
                comparison.config.baselines.grid_steps,
                counted(comparison),
                comparison.config.baselines.grid_networks.min(trained)
            ),
            &grid(comparison).to_html(),
        ),
        section("Settings", "What is needed to repeat this.", &facts(provenance, &settings(comparison))),
    ]
    .concat();
    let one = &comparison.updates.one_step;
    let mut highlights = vec![Highlight {
        value: value(test.kind, one.scores.get(test).mean),
        label: format!(
            "mean {test} after one update, from {}",
            value(test.kind, comparison.updates.random.get(test).mean)
        ),
    }];
    for id in ["sgd_best", "adam_best", "adam_default"] {
        if let Some(baseline) = comparison.baselines.iter().find(|b| b.id == id) {
            highlights.push(Highlight {
                value: unit_steps(comparison, baseline.equivalent_steps, run),
                label: format!("{unit} of {} that it replaces", baseline.name),
            });
        }
    }
    highlights.push(Highlight {
        value: seconds(one.seconds),
        label: "wall-clock of one update of one network".into(),
    });
    let title = format!("{} on {}", comparison.optimizer, comparison.task);
    Ok(page(&title, &provenance.task, &highlights, &body))
}

/// What a step of the optimizer is called: that of policies takes many environment steps.
fn counted(comparison: &Comparison) -> &'static str {
    match comparison.unit.per_step {
        1 => "steps",
        _ => "updates",
    }
}

fn settings(comparison: &Comparison) -> Vec<(String, String)> {
    let config = &comparison.config;
    let baselines = &config.baselines;
    let mut pairs = vec![
        ("seed".to_owned(), config.seed.to_string()),
        ("networks".to_owned(), comparison.networks.to_string()),
        (
            "prompt".to_owned(),
            format!("{} of {:.4}", comparison.metric, comparison.updates.one_step.prompt),
        ),
        ("batch size".to_owned(), baselines.batch_size.to_string()),
        (counted(comparison).to_owned(), baselines.steps.to_string()),
        (
            format!("networks of {}", comparison.trainers),
            baselines.trained(comparison.networks).to_string(),
        ),
    ];
    for baseline in &comparison.baselines {
        let rates: Vec<_> = baseline.grid.iter().map(|point| point.rate.to_string()).collect();
        let training = &baseline.config;
        let about = match training.algorithm {
            Algorithm::Sgd { momentum } => format!("Nesterov momentum {momentum}"),
            Algorithm::Adam => "dfdx's betas and epsilon of Adam".to_owned(),
        };
        let schedule = match training.schedule {
            Schedule::Constant => "constant rate",
            Schedule::Cosine | Schedule::Staircase { .. } => "rate falling along a cosine",
        };
        if !rates.is_empty() {
            let decay = training.weight_decay;
            pairs.push((
                baseline.title.to_owned(),
                format!("{about}, {schedule}, weight decay {decay}; rates {}", rates.join(", ")),
            ));
        }
    }
    pairs
}

fn colour(baseline: &Baseline) -> (figure::Colour, Line) {
    let colour = if baseline.id.starts_with("sgd") { SGD } else { ADAM };
    (colour, if baseline.id.ends_with("best") { Line::Solid } else { Line::Dashed })
}

fn curves(comparison: &Comparison) -> Result<String, ReportError> {
    let test = comparison.test_metric();
    let run = comparison.equivalent_steps.steps_run;
    let updates = &comparison.updates;
    let (start, one) = (updates.random.get(test).mean, updates.one_step.scores.get(test).mean);
    let name = &comparison.optimizer;
    let learned_legend = [
        (Sign::Disc(LEARNED), format!("{name}: updates 1 to {}", updates.recursive.updates)),
        (
            Sign::Diamond(TEAL),
            format!("{name}: one update, best of {}", updates.best_of_k.candidates),
        ),
        (Sign::Rule, format!("{test} of one update: {}", value(test.kind, one))),
    ];
    let baseline_legend: Vec<_> = comparison
        .baselines
        .iter()
        .map(|baseline| {
            let (colour, line) = colour(baseline);
            let reached = unit_steps(comparison, baseline.equivalent_steps, run);
            let text = format!("{}: {reached} {} to match", baseline.name, comparison.unit.name);
            (Sign::Line(colour, line), text)
        })
        .collect();
    let legend: [&[_]; 2] = [&learned_legend, &baseline_legend];
    let all = comparison.baselines.iter().flat_map(|b| b.curve.means(test).map(|(_, mean)| mean));
    let after = updates.recursive.after.iter().map(|scores| scores.get(test).mean);
    let best = updates.best_of_k.scores.get(test).mean;
    let values: Vec<f64> = all.chain(after).chain([start, one, best]).collect();
    let place = |step: usize| (step * comparison.unit.per_step) as f64;
    let first = comparison.update_positions().first().copied().unwrap_or(1.0);
    let end = place(run).max(10.0 * first).max(1.1 * comparison.best_position());
    let x = match comparison.unit.per_step {
        1 => Axis::logarithmic("updates or steps", first..end),
        _ => Axis::logarithmic(comparison.unit.name, 0.8 * first..end),
    };
    let y = value_axis(test, values.into_iter().filter(|v| v.is_finite()));
    let description =
        format!("Mean {test} against updates of {name} and steps of {}", comparison.trainers);
    draw((960, 560), (x, y), &legend, &description, |figure| {
        for baseline in &comparison.baselines {
            let (colour, _) = colour(baseline);
            let points: Vec<_> = baseline
                .curve
                .steps
                .iter()
                .zip(&baseline.curve.scores)
                .filter(|(&step, _)| step > 0)
                .map(|(&step, scores)| {
                    let e = scores.get(test);
                    let band = 2.0 * e.standard_error;
                    (place(step), e.mean - band, e.mean + band)
                })
                .collect();
            figure.band(&points, colour)?;
        }
        figure.rule((first, one), (end, one))?;
        for baseline in comparison.baselines.iter().rev() {
            let (colour, line) = colour(baseline);
            let points: Vec<_> = baseline
                .curve
                .means(test)
                .filter(|&(step, _)| step > 0)
                .map(|(step, mean)| (place(step), mean))
                .collect();
            figure.curve(&points, colour, line)?;
        }
        for baseline in &comparison.baselines {
            if let Some(step) = baseline.equivalent_steps {
                figure.ring((place(step), one), colour(baseline).0)?;
            }
        }
        learned(comparison, figure)
    })
}

fn learned(comparison: &Comparison, figure: &Figure) -> Result<(), ReportError> {
    let test = comparison.test_metric();
    let updates = &comparison.updates;
    let points: Vec<_> = updates
        .recursive
        .after
        .iter()
        .zip(comparison.update_positions())
        .map(|(scores, place)| (place, scores.get(test).mean))
        .collect();
    let first = points.first().map_or(1.0, |&(place, _)| place);
    figure.curve(&points, LEARNED, Line::Solid)?;
    let best = updates.best_of_k.scores.get(test).mean;
    figure.diamond((comparison.best_position(), best), TEAL)?;
    for &point in points.iter().rev() {
        figure.disc(point, 6, LEARNED, 1.0)?;
    }
    let start = updates.random.get(test).mean;
    let text = format!("random initialisation: {}", value(test.kind, start));
    figure.note(&text, (first, start), (10, -14), None)?;
    let Some(&first) = points.first() else { return Ok(()) };
    figure.note("one update", first, (14, -16), Some(LEARNED))
}

/// An axis that holds all values: logarithmic for a loss, linear otherwise.
pub(super) fn value_axis(metric: Metric, values: impl Iterator<Item = f64>) -> Axis {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    // Where everything has diverged, there is nothing to show.
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let label = match metric.kind {
        MetricKind::Error => format!("mean {metric} in percent"),
        _ => format!("mean {metric}"),
    };
    if metric.kind.direction() == Direction::Minimize && low > 0.0 {
        Axis::logarithmic(&label, low * 0.85..high * 1.3)
    } else {
        let margin = 0.05 * (high - low).max(1e-9);
        Axis::linear(&label, low - margin..high + margin, 6)
    }
}

fn recursion(comparison: &Comparison) -> Result<String, ReportError> {
    let (validation, test) = (comparison.metric, comparison.test_metric());
    recursion_figure(&comparison.updates, validation, test)
}

/// Metrics after each update in a row, with two standard errors.
pub(super) fn recursion_figure(
    updates: &crate::eval::updates::Updates,
    validation: Metric,
    test: Metric,
) -> Result<String, ReportError> {
    let all: Vec<&Scores> =
        std::iter::once(&updates.random).chain(&updates.recursive.after).collect();
    let series = [(validation, TEAL, -0.015), (test, LEARNED, 0.015)];
    let legend: Vec<_> = series
        .iter()
        .map(|(metric, colour, _)| {
            let last = estimate(metric.kind, updates.recursive.scores.get(*metric));
            (Sign::Line(*colour, Line::Solid), format!("{metric}: {last} after the last update"))
        })
        .collect();
    let means = series.iter().flat_map(|(m, ..)| all.iter().map(move |s| s.get(*m).mean));
    let y = value_axis(test, means.filter(|v| v.is_finite()));
    let y = Axis { label: format!("mean {}", test.kind), ..y };
    let count = updates.recursive.updates;
    let mut x = Axis::linear("updates", -0.15..count as f64 + 0.15, 1);
    x.ticks = (0..=count).map(|n| (n as f64, n.to_string())).collect();
    let description = format!("Mean {} after each update in a row", test.kind);
    draw((960, 380), (x, y), &[&legend], &description, |figure| {
        for &(metric, colour, shift) in &series {
            let points: Vec<_> =
                all.iter().enumerate().map(|(n, s)| (n as f64 + shift, s.get(metric))).collect();
            let line: Vec<_> = points.iter().map(|(x, e)| (*x, e.mean)).collect();
            figure.curve(&line, colour, Line::Solid)?;
            for (x, e) in points {
                let band = 2.0 * e.standard_error;
                if band.is_finite() {
                    figure.error_bar((x, e.mean - band, e.mean + band), colour)?;
                }
                figure.disc((x, e.mean), 5, colour, 1.0)?;
            }
        }
        Ok(())
    })
}

fn grid(comparison: &Comparison) -> Table {
    let last = format!("last {}", comparison.metric);
    let steps_to_match = format!("{} to match", counted(comparison));
    let mut table =
        Table::new(["optimizer", "rate", steps_to_match.as_str(), last.as_str(), "chosen"]);
    for baseline in &comparison.baselines {
        for point in &baseline.grid {
            table.row([
                baseline.title.to_owned(),
                point.rate.to_string(),
                steps(point.steps_to_match, comparison.config.baselines.grid_steps),
                value(comparison.metric.kind, point.last),
                if point.rate == baseline.config.learning_rate {
                    "✓".into()
                } else {
                    String::new()
                },
            ]);
        }
    }
    table
}
