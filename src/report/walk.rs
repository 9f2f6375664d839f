//! The report of a walk through the sampling noise.

use super::figure::{self, draw, jumps, placed, themed, Axis, Line, Sign, LEARNED, TEAL};
use super::format::{score, value};
use super::page::{escape, facts, figure as framed, page, section, Highlight};
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
/// Width of one of two windows above the curves.
const HALF: f64 = 470.0;
/// Largest width of the picture of one unit.
const TILE: f64 = 140.0;
/// Height of the words above a window.
const TITLE: f64 = 26.0;
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
    let (starts, differs) = match walk.config.starts {
        true => ("starting networks", "the sampling noise and the starting network each go"),
        false => ("one starting network", "only the sampling noise differs, which goes"),
    };
    let beside = if walk.config.starts { "" } else { "; beside them what changes, enlarged" };
    let what = match &walk.filters {
        Some(filters) => format!(
            "Weights of the first layer ({}), one picture for each of {} units: pink above zero, teal below, \
             clear at zero{beside}. ",
            filters.tensor,
            Tiling::wide(filters, UNITS).units,
        ),
        None => String::new(),
    };
    let mut body = vec![section(
        "Once around the loop",
        &format!(
            "{what}All {frames} networks are updates of {starts} with one prompt; {differs} once around a \
             circle, so the last network is followed by the first."
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
        (
            "start",
            match config.starts {
                true => "on a circle through two unseen initialisations".to_owned(),
                false => "one unseen initialisation".to_owned(),
            },
        ),
        ("mean step", format!("{:.3}", walk.step)),
        ("mean distance across", format!("{:.3}", walk.across)),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

/// Seconds of one turn.
fn seconds(walk: &Walk) -> f64 {
    walk.config.frames as f64 / RATE
}

/// Weights of the first layer of every network, `[F, ..]`, and what they differ by from
/// their mean over the loop.
fn first_layer(walk: &Walk, filters: &Filters) -> (Vec<f32>, Vec<f32>) {
    let size = filters.units * filters.shape.iter().product::<usize>();
    let frames = walk.config.frames;
    let weights: Vec<f32> = (0..frames)
        .flat_map(|frame| &walk.network(frame)[filters.offset..][..size])
        .copied()
        .collect();
    let mut mean = vec![0.0f64; size];
    for row in weights.chunks_exact(size) {
        mean.iter_mut().zip(row).for_each(|(m, &w)| *m += f64::from(w) / frames as f64);
    }
    let difference = |(index, &w): (usize, &f32)| (f64::from(w) - mean[index % size]) as f32;
    let differences = weights.iter().enumerate().map(difference).collect();
    (weights, differences)
}

fn animation(walk: &Walk) -> Result<String, ReportError> {
    let curves = curves(walk)?;
    let Some(filters) = &walk.filters else { return Ok(curves) };
    let (weights, differences) = first_layer(walk, filters);
    let (scale, fine) = (Scale::of(&weights), Scale::of(&differences));
    let title = "weights of the first layer";
    // Where the start changes too, all does, and there is nothing to enlarge.
    let (windows, height) = if walk.config.starts {
        window(walk, filters, (&weights, scale), (title, 0.0, f64::from(WIDTH)))?
    } else {
        let enlarged =
            format!("their difference from the mean of the loop, × {:.1}", scale.over(fine));
        let x = f64::from(WIDTH) - HALF;
        let (left, height) = window(walk, filters, (&weights, scale), (title, 0.0, HALF))?;
        let (right, _) = window(walk, filters, (&differences, fine), (&enlarged, x, HALF))?;
        (left + &right, height)
    };
    let top = height.ceil() as u32 + 20;
    let description = "Weights of the first layer and metric of networks around the loop";
    let body = format!("\n{windows}{}", placed(&curves, (0, top)));
    Ok(themed(&body, (WIDTH, top + CURVES), description))
}

/// Pictures that change from network to network, under a title, and their height.
fn window(
    walk: &Walk,
    filters: &Filters,
    (values, scale): (&[f32], Scale),
    (title, x, room): (&str, f64, f64),
) -> Result<(String, f64), ReportError> {
    let tiling = Tiling::wide(filters, UNITS);
    let (width, height) = tiling.size();
    let frames = walk.config.frames;
    // All networks in one picture, of which one is seen at a time.
    let columns = (1..=frames).find(|c| c * width >= frames.div_ceil(*c) * height);
    let columns = columns.unwrap_or(frames);
    let rows = frames.div_ceil(columns);
    let mut canvas = Canvas::new(columns * width, rows * height);
    let corner = |frame: usize| (frame % columns * width, frame / columns * height);
    for (frame, values) in values.chunks_exact(values.len() / frames).enumerate() {
        tiling.draw(&mut canvas, corner(frame), filters, values, scale);
    }
    let zoom = f64::min(room / width as f64, TILE / filters.shape[2] as f64);
    let (shown_width, shown_height) = (zoom * width as f64, zoom * height as f64);
    let moves = |attribute: &str, along: fn((usize, usize)) -> usize| {
        let values: Vec<i32> = (0..frames).map(|frame| -(along(corner(frame)) as i32)).collect();
        jumps(attribute, &values, seconds(walk))
    };
    let words = text((x, 0.6 * TITLE), "start", title);
    let window = format!(
        "{words}<svg x=\"{x:.1}\" y=\"{TITLE}\" width=\"{shown_width:.1}\" height=\"{shown_height:.1}\" \
         viewBox=\"0 0 {width} {height}\" overflow=\"hidden\">\n<image width=\"{}\" height=\"{}\" \
         style=\"image-rendering: pixelated\" href=\"{}\">{}{}</image></svg>\n",
        columns * width,
        rows * height,
        canvas.uri()?,
        moves("x", |at| at.0),
        moves("y", |at| at.1),
    );
    Ok((window, TITLE + shown_height))
}

/// Words in the colour of the text around the figure.
fn text((x, y): (f64, f64), anchor: &str, words: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" dy=\"0.35em\" text-anchor=\"{anchor}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"currentColor\">{}</text>\n",
        escape(words)
    )
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
    let count = STRIP.min(frames);
    let stations: Vec<usize> = (0..count).map(|k| k * frames / count).collect();
    let units = filters.units.min(16);
    let tiling = Tiling::new(filters, units, units);
    let (width, height) = tiling.size();
    let mut canvas = Canvas::new(width, count * height);
    let (weights, _) = first_layer(walk, filters);
    let (scale, size) = (Scale::of(&weights), weights.len() / frames);
    for (row, &frame) in stations.iter().enumerate() {
        let values = &weights[frame * size..][..size];
        tiling.draw(&mut canvas, (0, row * height), filters, values, scale);
    }
    let (left, right) = (70.0, 90.0);
    let room = f64::from(WIDTH) - left - right;
    let zoom = (room / width as f64).min(80.0 / height as f64);
    let (shown_width, row_height) = (zoom * width as f64, zoom * height as f64);
    let shown_height = row_height * count as f64;
    let mut body = format!(
        "\n<image x=\"{left}\" y=\"0\" width=\"{shown_width:.1}\" height=\"{shown_height:.1}\" \
         style=\"image-rendering: pixelated\" href=\"{}\"/>\n",
        canvas.uri()?
    );
    let values = walk.course.get(walk.metric);
    for (row, &frame) in stations.iter().enumerate() {
        let y = row_height * (row as f64 + 0.5);
        let angle = format!("{}°", 360 * frame / frames);
        body.push_str(&text((left - 12.0, y), "end", &angle));
        let metric = value(walk.metric.kind, values[frame]);
        body.push_str(&text((left + shown_width + 12.0, y), "start", &metric));
    }
    let size = (WIDTH, shown_height.ceil() as u32);
    Ok(themed(&body, size, "Weights of the first layer of some networks around the loop"))
}
