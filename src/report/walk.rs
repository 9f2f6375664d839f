//! The report of a walk through the sampling noise.

use super::figure::{self, draw, jumps, placed, themed, Axis, Line, Sign, LEARNED, TEAL};
use super::format::{score, value};
use super::page::{facts, figure as framed, page, section, Highlight};
use super::picture::{Canvas, Scale, Tiling, ABOVE, BELOW};
use super::{Provenance, ReportError, Table};
use crate::eval::walk::Filters;
use crate::eval::{Estimate, Walk};
use crate::metric::{Direction, Metric, Split};

/// Most units that are drawn.
const UNITS: usize = 64;
/// Pictures in a second.
const RATE: f64 = 12.0;
/// Width of figures.
const WIDTH: u32 = 960;
/// Largest side of the picture of one unit on the page.
const TILE: f64 = 140.0;
/// Height of the curves.
const CURVES: u32 = 360;
/// Networks in a strip.
const STRIP: usize = 8;

/// Mean and range of every metric along the walk.
pub fn walk_table(walk: &Walk) -> Table {
    let header = ["along the loop", "mean", "deviation", "least", "most", "before the update"];
    let mut table = Table::new(header);
    for (metric, values) in walk.course.iter() {
        let Estimate { mean, standard_error } = Estimate::of(values);
        let deviation = standard_error * (values.len() as f64).sqrt();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let [mean, deviation, least, most] =
            [mean, deviation, least, most].map(|v| value(metric.kind, v));
        let name = metric.to_string();
        table.row([name, mean, deviation, least, most, score(&walk.start, metric)]);
    }
    table
}

/// The first layer of the networks and their metric, all around the loop; an
/// animated SVG that stands alone and needs no script.
///
/// # Errors
/// If it cannot be drawn.
pub fn walk_figure(walk: &Walk) -> Result<String, ReportError> {
    Ok(figure::standalone(&animation(walk)?))
}

/// The first layer of a few networks around the loop, one below the other; an SVG
/// that stands alone, `None` if the first layer reads no image.
///
/// # Errors
/// If it cannot be drawn.
pub fn walk_strip(walk: &Walk) -> Result<Option<String>, ReportError> {
    let strip = walk.filters.as_ref().map(|filters| strip(walk, filters)).transpose()?;
    Ok(strip.map(|svg| figure::standalone(&svg)))
}

/// The whole report, one HTML file.
///
/// # Errors
/// If a figure cannot be drawn.
pub fn walk_page(walk: &Walk, provenance: &Provenance) -> Result<String, ReportError> {
    let metric = walk.metric;
    let frames = walk.config.frames;
    let what = match &walk.filters {
        Some(filters) => format!(
            "Weights of the first layer (`{}`), one picture for each of {} units, from network to \
             network: {} above zero, {} below, nothing at zero. ",
            filters.tensor,
            Tiling::wide(filters, UNITS).units,
            "pink",
            "teal"
        ),
        None => String::new(),
    };
    let mut body = vec![section(
        "Once around the loop",
        &format!(
            "{what}All {frames} networks are updates of one starting network with one prompt; only the \
             sampling noise differs. It goes once around a circle, so the last network is followed by the \
             first."
        ),
        &framed(&animation(walk)?),
    )];
    if let Some(filters) = &walk.filters {
        let text =
            "The same, one row for each network; beside it where it lies on the loop and its \
                    metric.";
        body.push(section("Stations", text, &framed(&strip(walk, filters)?)));
    }
    body.extend([
        section(
            "All figures",
            &format!("Mean, standard deviation and range over the {frames} networks."),
            &walk_table(walk).to_html(),
        ),
        section("Settings", "What is needed to repeat this.", &facts(provenance, &settings(walk))),
    ]);
    let (mean, most) = walk.deviation();
    let test = Metric { split: Split::Test, ..metric };
    let average = |metric: Metric| value(metric.kind, Estimate::of(walk.course.get(metric)).mean);
    let highlights = [
        Highlight {
            value: average(metric),
            label: format!("mean {metric} on the loop, prompt {:.3}", walk.config.prompt),
        },
        Highlight {
            value: value(metric.kind, mean),
            label: format!("mean difference from the prompt; at most {}", value(metric.kind, most)),
        },
        Highlight { value: average(test), label: format!("mean {test} on the loop") },
        Highlight {
            value: format!("{:.1}", walk.across / walk.step),
            label: "steps apart, in a straight line, are opposite networks".into(),
        },
    ];
    let title = format!("A walk through the sampling noise ({})", walk.task);
    Ok(page(&title, &provenance.task, &highlights, &body.concat()))
}

fn settings(walk: &Walk) -> Vec<(String, String)> {
    let config = &walk.config;
    let pairs = [
        ("seed", config.seed.to_string()),
        ("networks", config.frames.to_string()),
        ("prompt", format!("{} of {:.4}", walk.metric, config.prompt)),
        ("mean step", format!("{:.3}", walk.step)),
        ("mean distance across", format!("{:.3}", walk.across)),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

/// Seconds of one turn.
fn seconds(walk: &Walk) -> f64 {
    walk.config.frames as f64 / RATE
}

fn scale(walk: &Walk, filters: &Filters) -> Scale {
    let size = filters.units * filters.shape.iter().product::<usize>();
    let weights = |frame| walk.network(frame)[filters.offset..][..size].iter().copied();
    Scale::of((0..walk.config.frames).flat_map(weights))
}

fn animation(walk: &Walk) -> Result<String, ReportError> {
    let curves = curves(walk)?;
    let Some(filters) = &walk.filters else { return Ok(curves) };
    let tiling = Tiling::wide(filters, UNITS);
    let (width, height) = tiling.size();
    let frames = walk.config.frames;
    // All networks in one picture, of which one is seen at a time.
    let columns =
        (1..=frames).find(|c| c * width >= frames.div_ceil(*c) * height).unwrap_or(frames);
    let mut canvas = Canvas::new(columns * width, frames.div_ceil(columns) * height);
    let scale = scale(walk, filters);
    let corner = |frame: usize| (frame % columns * width, frame / columns * height);
    for frame in 0..frames {
        tiling.draw(&mut canvas, corner(frame), filters, walk.network(frame), scale);
    }
    let zoom = f64::min(f64::from(WIDTH) / width as f64, TILE / filters.shape[2] as f64);
    let (shown_width, shown_height) = (zoom * width as f64, zoom * height as f64);
    let moves = |attribute: &str, along: fn((usize, usize)) -> usize| {
        let values: Vec<i32> = (0..frames).map(|frame| -(along(corner(frame)) as i32)).collect();
        jumps(attribute, &values, seconds(walk))
    };
    let window = format!(
        "<svg x=\"{:.1}\" y=\"0\" width=\"{shown_width:.1}\" height=\"{shown_height:.1}\" \
         viewBox=\"0 0 {width} {height}\" overflow=\"hidden\">\n<image width=\"{}\" height=\"{}\" \
         style=\"image-rendering: pixelated\" href=\"{}\">{}{}</image></svg>\n",
        0.5 * (f64::from(WIDTH) - shown_width),
        columns * width,
        frames.div_ceil(columns) * height,
        canvas.uri()?,
        moves("x", |at| at.0),
        moves("y", |at| at.1),
    );
    let top = shown_height.ceil() as u32 + 20;
    let description = "Weights of the first layer and metric of networks around the loop";
    let body = format!("\n{window}{}", placed(&curves, (0, top)));
    Ok(themed(&body, (WIDTH, top + CURVES), description))
}

fn curves(walk: &Walk) -> Result<String, ReportError> {
    let metric = walk.metric;
    let test = Metric { split: Split::Test, ..metric };
    let series = [(metric, LEARNED), (test, TEAL)];
    let frames = walk.config.frames;
    let points = |metric: Metric| -> Vec<(f64, f64)> {
        let values = walk.course.get(metric).iter();
        values.enumerate().map(|(k, &v)| (360.0 * k as f64 / frames as f64, v)).collect()
    };
    let all = series.iter().flat_map(|(metric, _)| walk.course.get(*metric)).copied();
    let all = all.chain([walk.config.prompt]).filter(|v| v.is_finite());
    let (low, high) = all.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    // From zero where that is the best there is, so that small waves look small.
    let range = match metric.kind.direction() {
        Direction::Minimize if low >= 0.0 => 0.0..1.4 * high.max(1e-6),
        _ => low - 0.3 * (high - low).max(1e-6)..high + 0.3 * (high - low).max(1e-6),
    };
    let mut x = Axis::linear("angle on the circle of noise", 0.0..360.0, 8);
    x.ticks = (0..=8).map(|k| (45.0 * f64::from(k), format!("{}°", 45 * k))).collect();
    let y = Axis::linear(&metric.kind.to_string(), range, 5);
    let mut curves: Vec<_> = series
        .iter()
        .map(|(metric, colour)| {
            let mean = Estimate::of(walk.course.get(*metric)).mean;
            let text = format!("{metric}: {} on average", value(metric.kind, mean));
            (Sign::Line(*colour, Line::Solid), text)
        })
        .collect();
    curves.push((Sign::Rule, format!("prompt: {}", value(metric.kind, walk.config.prompt))));
    let weights = [
        (Sign::Disc(ABOVE), "weight above 0".into()),
        (Sign::Disc(BELOW), "weight below 0".into()),
    ];
    let legend: [&[_]; 2] = [&curves, if walk.filters.is_some() { &weights } else { &[] }];
    let description = format!("{metric} around the loop");
    draw((WIDTH, CURVES), (x, y), &legend, &description, |figure| {
        let prompt = walk.config.prompt;
        figure.rule((0.0, prompt), (360.0, prompt))?;
        for (metric, colour) in series.into_iter().rev() {
            let points = points(metric);
            let closed: Vec<_> =
                points.iter().copied().chain(points.first().map(|p| (360.0, p.1))).collect();
            figure.curve(&closed, colour, Line::Solid)?;
            figure.traveller(&points, colour, seconds(walk));
        }
        Ok(())
    })
}

fn strip(walk: &Walk, filters: &Filters) -> Result<String, ReportError> {
    let frames = walk.config.frames;
    let stations: Vec<usize> =
        (0..STRIP.min(frames)).map(|k| k * frames / STRIP.min(frames)).collect();
    let units = filters.units.min(16);
    let tiling = Tiling::new(filters, units, units);
    let (width, height) = tiling.size();
    let mut canvas = Canvas::new(width, stations.len() * height);
    let scale = scale(walk, filters);
    for (row, &frame) in stations.iter().enumerate() {
        tiling.draw(&mut canvas, (0, row * height), filters, walk.network(frame), scale);
    }
    let (left, right) = (70.0, 90.0);
    let room = f64::from(WIDTH) - left - right;
    let zoom = (room / width as f64).min(80.0 / height as f64);
    let row_height = zoom * height as f64;
    let mut body = format!(
        "\n<image x=\"{left}\" y=\"0\" width=\"{:.1}\" height=\"{:.1}\" \
         style=\"image-rendering: pixelated\" href=\"{}\"/>\n",
        zoom * width as f64,
        row_height * stations.len() as f64,
        canvas.uri()?
    );
    let values = walk.course.get(walk.metric);
    for (row, &frame) in stations.iter().enumerate() {
        let y = row_height * (row as f64 + 0.5);
        let angle = 360 * frame / frames;
        let metric = value(walk.metric.kind, values[frame]);
        for (x, anchor, text) in [
            (left - 12.0, "end", format!("{angle}°")),
            (left + zoom * width as f64 + 12.0, "start", metric),
        ] {
            body.push_str(&format!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" dy=\"0.35em\" text-anchor=\"{anchor}\" \
                 font-family=\"sans-serif\" font-size=\"15\" fill=\"currentColor\">{text}</text>\n"
            ));
        }
    }
    let size = (WIDTH, (row_height * stations.len() as f64).ceil() as u32);
    Ok(themed(&body, size, "Weights of the first layer of some networks around the loop"))
}
