//! The report of initialisations that training has not seen.

use super::comparison::value_axis;
use super::figure::{
    self, draw, Axis, Colour, Line, Sign, ADAM, LEARNED, OLIVE, SGD, TEAL, VIOLET,
};
use super::format::{score, steps, value};
use super::page::{facts, figure as framed, page, section, Highlight};
use super::{Provenance, ReportError, Table};
use crate::eval::Initialisations;
use crate::metric::{Metric, MetricKind, Split};

const COLOURS: [Colour; 6] = [LEARNED, SGD, ADAM, TEAL, VIOLET, OLIVE];

/// The test metric before and after every update, for each kind of initialisation.
pub fn initialisations_table(result: &Initialisations) -> Table {
    let test = result.test_metric();
    let error = Metric { kind: MetricKind::Error, split: Split::Test };
    let updates = result.config.updates;
    let with_error = test != error && result.kinds[0].after[0].iter().any(|(m, _)| m == error);
    let mut header = vec![format!("{test} after"), "0".to_owned()];
    header.extend((1..=updates).map(|k| format!("{k} update{}", if k > 1 { "s" } else { "" })));
    if with_error {
        header.push(format!("{error} after {updates}"));
    }
    header.extend(["best kept".to_owned(), "updates to match".to_owned()]);
    let mut table = Table::new(header);
    for kind in &result.kinds {
        let mut cells = vec![kind.initialisation.to_string()];
        cells.extend(kind.after.iter().map(|scores| score(scores, test)));
        if with_error {
            cells.push(score(&kind.after[updates], error));
        }
        cells.push(score(&kind.kept, test));
        cells.push(steps(kind.updates_to_match, updates));
        table.row(cells);
    }
    table
}

/// The test metric after every update, one curve for each kind of initialisation;
/// an SVG that stands alone.
///
/// # Errors
/// If it cannot be drawn.
pub fn initialisations_figure(result: &Initialisations) -> Result<String, ReportError> {
    Ok(figure::standalone(&curves(result)?))
}

/// The whole report, one HTML file.
///
/// # Errors
/// If a figure cannot be drawn.
pub fn initialisations_page(
    result: &Initialisations,
    provenance: &Provenance,
) -> Result<String, ReportError> {
    let test = result.test_metric();
    let (networks, updates) = (result.networks, result.config.updates);
    let body = [
        section(
            "Updates in a row",
            &format!(
                "Mean {test} of {networks} networks of each kind; bars are two standard errors. Every \
                 update asks for a {} of {:.4} and starts from the result of the last one, measured anew. \
                 The runs that the G.pt was trained on were initialised by dfdx.",
                result.metric, result.prompt
            ),
            &framed(&curves(result)?),
        ),
        section(
            "All figures",
            &format!(
                "Mean and standard error over {networks} networks. Best kept: of each network the state \
                 with the best {}, as when updates that do not help are undone. Updates to match: the first \
                 after which the mean {test} is that of one update of dfdx's own initialisation.",
                result.metric
            ),
            &initialisations_table(result).to_html(),
        ),
        section("Settings", "What is needed to repeat this.", &facts(provenance, &settings(result))),
    ]
    .concat();
    let mut highlights = Vec::new();
    for kind in &result.kinds {
        let (first, last) = (kind.after[0].get(test).mean, kind.after[updates].get(test).mean);
        highlights.push(Highlight {
            value: value(test.kind, last),
            label: format!("{}, from {}", kind.initialisation, value(test.kind, first)),
        });
    }
    let title = format!("Initialisations that training has not seen ({})", result.task);
    Ok(page(&title, &provenance.task, &highlights, &body))
}

fn settings(result: &Initialisations) -> Vec<(String, String)> {
    let config = &result.config;
    let pairs = [
        ("seed", config.seed.to_string()),
        ("networks", format!("{} of each kind", result.networks)),
        ("prompt", format!("{} of {:.4}", result.metric, result.prompt)),
        ("updates", config.updates.to_string()),
        ("Kaiming normal", "normal, variance 2 / fan in; biases 0".to_owned()),
        ("Xavier uniform", "uniform, variance 2 / (fan in + fan out); biases 0".to_owned()),
        ("orthogonal", "orthonormal rows or columns, whichever are fewer; biases 0".to_owned()),
        ("times a factor", "weights and biases of dfdx's own".to_owned()),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

fn curves(result: &Initialisations) -> Result<String, ReportError> {
    let test = result.test_metric();
    let updates = result.config.updates;
    let series: Vec<_> = result.kinds.iter().zip(COLOURS).collect();
    let entry = |(kind, colour): &(&crate::eval::initialisations::Recovery, Colour)| {
        let last = value(test.kind, kind.after[updates].get(test).mean);
        (
            Sign::Line(*colour, Line::Solid),
            format!("{}: {last} after {updates}", kind.initialisation),
        )
    };
    let legend: Vec<_> = series.iter().map(entry).collect();
    let columns: Vec<&[_]> = legend.chunks(3).collect();
    let means = result.kinds.iter().flat_map(|kind| kind.after.iter().map(|s| s.get(test).mean));
    let y = value_axis(test, means.filter(|mean| mean.is_finite()));
    let mut x = Axis::linear("updates", -0.2..updates as f64 + 0.2, 1);
    x.ticks = (0..=updates).map(|n| (n as f64, n.to_string())).collect();
    let description = format!("Mean {test} after each update, by initialisation");
    draw((960, 520), (x, y), &columns, &description, |figure| {
        // The kind that was seen in training comes last, over the others.
        for (index, (kind, colour)) in series.iter().enumerate().rev() {
            let shift = 0.03 * (index as f64 - 2.5);
            let points: Vec<_> = kind
                .after
                .iter()
                .enumerate()
                .map(|(n, s)| (n as f64 + shift, s.get(test)))
                .collect();
            let line: Vec<_> = points.iter().map(|(x, e)| (*x, e.mean)).collect();
            figure.curve(&line, *colour, Line::Solid)?;
            for (x, e) in points {
                let band = 2.0 * e.standard_error;
                if band.is_finite() {
                    figure.error_bar((x, e.mean - band, e.mean + band), *colour)?;
                }
                figure.disc((x, e.mean), 5, *colour, 1.0)?;
            }
        }
        Ok(())
    })
}
