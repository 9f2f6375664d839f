//! The report of how much samples differ.

use super::figure::{
    self, draw, placed, themed, Axis, Colour, Figure, Sign, LEARNED, OLIVE, SGD, VIOLET,
};
use super::format::{score, value};
use super::page::{facts, figure as framed, page, section, Highlight};
use super::picture::Canvas;
use super::{Provenance, ReportError, Table};
use crate::eval::diversity::{Cause, Group, Landscape};
use crate::eval::Diversity;
use crate::metric::{Metric, Split};

/// Size of each half of the figure: with a legend of three rows the axes are a square.
const HALF: (u32, u32) = (480, 538);

/// Metrics, distances and disagreement of every group.
pub fn diversity_table(result: &Diversity) -> Table {
    let metric = result.metric;
    let tests: Vec<Metric> =
        result.start.iter().map(|(m, _)| m).filter(|m| m.split == Split::Test).collect();
    let mut header = vec!["networks".to_owned(), metric.to_string(), "deviation".to_owned()];
    header.extend(tests.iter().map(Metric::to_string));
    header.extend(["from start", "apart", "apart / from start", "disagree"].map(str::to_owned));
    let mut table = Table::new(header);
    for group in &result.groups {
        let deviation = value(metric.kind, group.deviation);
        let mut cells = vec![title(group), score(&group.scores, metric), deviation];
        cells.extend(tests.iter().map(|&test| score(&group.scores, test)));
        cells.extend([group.from_start, group.apart].map(|distance| format!("{distance:.2}")));
        cells.extend([format!("{:.2}", group.spread()), format!("{:.1} %", group.disagreement)]);
        table.row(cells);
    }
    table
}

/// Samples on the landscape of the metric, and distances against disagreement; an
/// SVG that stands alone.
///
/// # Errors
/// If it cannot be drawn.
pub fn diversity_figure(result: &Diversity) -> Result<String, ReportError> {
    Ok(figure::standalone(&halves(result)?))
}

/// The whole report, one HTML file.
///
/// # Errors
/// If a figure cannot be drawn.
pub fn diversity_page(result: &Diversity, provenance: &Provenance) -> Result<String, ReportError> {
    let (metric, samples) = (result.metric, result.config.samples);
    let shares = result.landscape.shares.map(|share| format!("{:.0} %", 100.0 * share));
    let body = [
        section(
            "Parameters and answers",
            &format!(
                "Left: the plane in which samples and trainings spread most ({} and {} of their variance), \
                 and the {metric} of the networks that lie in it: the deeper the colour, the better. \
                 Samples and trainings are seen from above the plane; theirs is not quite the one drawn \
                 below them. Right: every two networks of a group, by the distance of their parameters and by the \
                 share of test examples that they answer differently.",
                shares[0], shares[1]
            ),
            &framed(&halves(result)?),
        ),
        section(
            "All figures",
            &format!(
                "Mean and standard error of the metrics; deviation is that of the {metric} from network to \
                 network. Apart: mean distance of two networks; as a multiple of their distance from the \
                 start it is 0 where all went the same way and 1.41 where they went ways at right angles."
            ),
            &diversity_table(result).to_html(),
        ),
        section("Settings", "What is needed to repeat this.", &facts(provenance, &settings(result))),
    ]
    .concat();
    let mut highlights = Vec::new();
    if let Some(noise) = result.group(Cause::Noise) {
        let mean = noise.scores.get(metric).mean;
        highlights = vec![
            Highlight {
                value: format!("{:.1} %", noise.disagreement),
                label: "of test examples are answered differently by two samples".into(),
            },
            Highlight {
                value: format!("{:.2}", noise.spread()),
                label: "distance of two samples, in distances from the start".into(),
            },
            Highlight {
                value: value(metric.kind, mean),
                label: format!("mean {metric} of {samples} samples, prompt {:.3}", result.prompt),
            },
            Highlight {
                value: value(metric.kind, noise.deviation),
                label: format!("standard deviation of the {metric} over samples"),
            },
        ];
    }
    let title = format!("Samples of one network at one prompt ({})", result.task);
    Ok(page(&title, &provenance.task, &highlights, &body))
}

fn settings(result: &Diversity) -> Vec<(String, String)> {
    let config = &result.config;
    let pairs = [
        ("seed", config.seed.to_string()),
        ("samples", config.samples.to_string()),
        ("prompt", format!("{} of {:.4}", result.metric, result.prompt)),
        (
            "trainings",
            format!("{}, with the settings of the task's recorded runs", config.trainings),
        ),
        ("landscape", format!("{0} by {0} points", config.landscape)),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

fn title(group: &Group) -> String {
    let count = group.values.len();
    match group.cause {
        Cause::Noise => format!("{count} samples from one start"),
        Cause::Order => format!("{count} trainings of that start"),
        Cause::Start => format!("{count} updates of other starts"),
    }
}

fn colour(cause: Cause) -> Colour {
    match cause {
        Cause::Noise => LEARNED,
        Cause::Order => SGD,
        Cause::Start => OLIVE,
    }
}

fn halves(result: &Diversity) -> Result<String, ReportError> {
    let description = "Samples on the landscape of the metric, and how much networks differ";
    let body = [(landscape(result)?, 0), (pairs(result)?, HALF.0)]
        .map(|(half, x)| placed(&half, (x, 0)))
        .concat();
    Ok(themed(&body, (2 * HALF.0, HALF.1), description))
}

fn landscape(result: &Diversity) -> Result<String, ReportError> {
    let (metric, land) = (result.metric, &result.landscape);
    let (low, high) = (land.point(0, 0), land.point(land.points - 1, land.points - 1));
    let axis = |axis: usize, name: &str| {
        Axis::linear(&format!("{name} direction"), low[axis]..high[axis], 5)
    };
    let axes = (axis(0, "first"), axis(1, "second"));
    let mut legend: Vec<_> = result
        .groups
        .iter()
        .filter(|group| !group.places.is_empty())
        .map(|group| (Sign::Disc(colour(group.cause)), title(group)))
        .collect();
    let finite = || land.values.iter().copied().filter(|v| v.is_finite());
    let ends = [finite().fold(f64::NAN, f64::min), finite().fold(f64::NAN, f64::max)];
    let [low_value, high_value] = ends.map(|v| value(metric.kind, v));
    let shade_text = format!("{metric} of the plane, {low_value} to {high_value}");
    legend.push((Sign::Disc(VIOLET), shade_text));
    let description = format!("Samples and trainings on the landscape of {metric}");
    draw(HALF, axes, &[&legend], &description, |figure| {
        shade(figure, metric, land)?;
        for group in result.groups.iter().rev() {
            for &[x, y] in &group.places {
                figure.disc((x, y), 5, colour(group.cause), 0.9)?;
            }
        }
        Ok(())
    })
}

/// Colours the plane by rank of the metric, and draws lines of equal metric.
fn shade(figure: &mut Figure, metric: Metric, land: &Landscape) -> Result<(), ReportError> {
    let n = land.points;
    // A loss spans orders of magnitude.
    let positive = land.values.iter().all(|v| *v > 0.0 || !v.is_finite());
    let scaled = |v: f64| if positive { v.ln() } else { v };
    let finite = || land.values.iter().copied().filter(|v| v.is_finite()).map(scaled);
    let (least, most) = (finite().fold(f64::MAX, f64::min), finite().fold(f64::MIN, f64::max));
    let span = (most - least).max(1e-9);
    let better_low = metric.kind.direction().is_better(0.0, 1.0);
    let share = |&v: &f64| {
        let share = (scaled(v) - least) / span;
        match (v.is_finite(), better_low) {
            (false, _) => 1.0,
            (true, true) => 0.25 + 0.75 * share,
            (true, false) => 1.0 - 0.75 * share,
        }
    };
    let shares: Vec<f64> = land.values.iter().map(share).collect();
    let (low, high) = (land.point(0, 0), land.point(n - 1, n - 1));
    let uri = Canvas::map(&shares, n, VIOLET).uri()?;
    figure.backdrop(&uri, (low[0], low[1]), (high[0], high[1]));
    for level in (1..7).map(|k| least + span * f64::from(k) / 7.0) {
        for (row, column) in (0..n - 1).flat_map(|row| (0..n - 1).map(move |c| (row, c))) {
            contour(figure, land, (column, row), &|v| scaled(v) - level)?;
        }
    }
    Ok(())
}

/// The piece of the line of height 0 within one cell.
fn contour(
    figure: &Figure,
    land: &Landscape,
    (column, row): (usize, usize),
    height: &dyn Fn(f64) -> f64,
) -> Result<(), ReportError> {
    let corners = [(0, 0), (1, 0), (1, 1), (0, 1)].map(|(x, y)| {
        let (x, y) = (column + x, row + y);
        (land.point(x, y), height(land.values[y * land.points + x]))
    });
    let mut crossings = Vec::with_capacity(4);
    for side in 0..4 {
        let ((a, u), (b, v)) = (corners[side], corners[(side + 1) % 4]);
        if (u < 0.0) != (v < 0.0) && u.is_finite() && v.is_finite() {
            let share = u / (u - v);
            crossings.push((a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])));
        }
    }
    // Of a saddle's two ways to be joined, either will do.
    crossings.chunks_exact(2).try_for_each(|ends| figure.hairline(ends[0], ends[1]))
}

fn pairs(result: &Diversity) -> Result<String, ReportError> {
    let all = || result.groups.iter().flat_map(|group| &group.pairs);
    let end = |values: &mut dyn Iterator<Item = f64>| {
        1.08 * values.filter(|v| v.is_finite()).fold(1e-3, f64::max)
    };
    let farthest = end(&mut all().map(|p| p.distance));
    let distances = all().map(|p| p.distance).filter(|&d| d > 0.0);
    let nearest = 0.9 * distances.fold(farthest, f64::min);
    let x = Axis::logarithmic("distance of two networks", nearest..farthest);
    let y = Axis::linear(
        "answered differently, in percent",
        0.0..end(&mut all().map(|p| p.disagreement)),
        6,
    );
    let legend: Vec<_> = result
        .groups
        .iter()
        .map(|group| {
            let text = format!("{}: {:.1} %", title(group), group.disagreement);
            (Sign::Disc(colour(group.cause)), text)
        })
        .collect();
    let description = "Disagreement of two networks against the distance of their parameters";
    draw(HALF, (x, y), &[&legend], description, |figure| {
        for group in result.groups.iter().rev() {
            for pair in group.pairs.iter().filter(|pair| pair.distance.is_finite()) {
                figure.disc((pair.distance, pair.disagreement), 3, colour(group.cause), 0.45)?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::alignment::Request;
    use crate::eval::{
        diversity, initialisations, walk, DiversityConfig, InitialisationConfig, Subject,
        WalkConfig,
    };
    use crate::report::{initialisations_page, walk_page, walk_strip};
    use crate::tasks::Digits;

    #[test]
    fn updates_that_have_all_diverged_are_reported_too() {
        let digits = Digits::load().unwrap();
        let metric = Metric::VALIDATION_LOSS;
        let mut sample = |request: Request<'_>| Ok(vec![f32::NAN; request.start.len()]);
        let mut subject = Subject { name: "broken", sample: &mut sample, metric, best_prompt: 0.1 };
        let provenance = Provenance::default();

        let config = DiversityConfig {
            samples: 2,
            trainings: 0,
            landscape: 2,
            ..DiversityConfig::default()
        };
        let result = diversity(&digits, &mut subject, &config, &()).unwrap();
        let page = diversity_page(&result, &provenance).unwrap();
        assert!(page.contains("validation loss of the plane, diverged to diverged"));

        let config = InitialisationConfig { networks: 2, updates: 1, ..Default::default() };
        let result = initialisations(&digits, &mut subject, &config, &()).unwrap();
        let page = initialisations_page(&result, &provenance).unwrap();
        assert!(page.contains("Xavier uniform: diverged after 1"));
        // What is kept is the start.
        assert_eq!(result.kinds[2].kept, result.kinds[2].after[0]);

        let mut sample = |request: Request<'_>, _: &[f32]| Ok(vec![f32::NAN; request.start.len()]);
        let config = WalkConfig { frames: 3, ..WalkConfig::new(0.1) };
        let result = walk(&digits, metric, &mut sample, &config, &()).unwrap();
        assert!(walk_page(&result, &provenance).unwrap().contains("diverged"));
        assert!(walk_strip(&result).unwrap().unwrap().contains("diverged"));
    }
}
