//! Axes, curves and legends of a figure.
//!
//! Axes may be logarithmic; ticks, labels and legend are placed here, so that
//! figures look alike and nothing covers the data. What plotters cannot draw, a
//! picture or something that moves, is written as SVG under or over its drawing.

use std::ops::Range;

use plotters::coord::types::RangedCoordf64;
use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::ReportError;

/// Stands for the colour of the text around the figure.
const INK: RGBColor = RGBColor(1, 2, 3);
/// The learned optimizer.
pub(super) const LEARNED: RGBColor = RGBColor(0xd6, 0x33, 0x6c);
/// SGD.
pub(super) const SGD: RGBColor = RGBColor(0x2f, 0x80, 0xed);
/// Adam.
pub(super) const ADAM: RGBColor = RGBColor(0xe0, 0x86, 0x0a);
/// Further colours.
pub(super) const TEAL: RGBColor = RGBColor(0x12, 0x9e, 0x8e);
pub(super) const VIOLET: RGBColor = RGBColor(0x84, 0x5e, 0xf7);
pub(super) const OLIVE: RGBColor = RGBColor(0x74, 0x8f, 0x1c);

/// Colour of a curve.
pub(super) type Colour = RGBColor;

const FONT: &str = "sans-serif";
const TEXT: i32 = 16;
const LEGEND_ROW: i32 = 24;

/// One axis: its range, its ticks and what it shows.
pub(super) struct Axis {
    pub label: String,
    pub range: Range<f64>,
    pub ticks: Vec<(f64, String)>,
    pub logarithmic: bool,
}

impl Axis {
    /// A logarithmic axis with ticks at 1, 2 and 5 times powers of ten, or more where few fit.
    pub fn logarithmic(label: &str, range: Range<f64>) -> Self {
        let ticks = |steps: &[f64]| {
            let powers = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
            powers
                .flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)))
                .filter(|tick| (range.start * 0.999..=range.end * 1.001).contains(tick))
                .map(|tick| (tick, short(tick)))
                .collect::<Vec<_>>()
        };
        let mut chosen = ticks(&[1.0, 2.0, 5.0]);
        if chosen.len() < 5 {
            chosen = ticks(&[1.0, 1.5, 2.0, 3.0, 5.0, 7.0]);
        }
        Self { label: label.to_owned(), range, ticks: chosen, logarithmic: true }
    }

    /// A linear axis with about `count` round ticks.
    pub fn linear(label: &str, range: Range<f64>, count: usize) -> Self {
        let rough = (range.end - range.start) / count.max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|s| s * power).into_iter().find(|s| *s >= rough);
        let step = step.unwrap_or(rough);
        let first = (range.start / step).ceil() as i64;
        let last = (range.end / step + 1e-9).floor() as i64;
        let ticks = (first..=last).map(|i| (i as f64 * step, short(i as f64 * step))).collect();
        Self { label: label.to_owned(), range, ticks, logarithmic: false }
    }

    fn place(&self, value: f64) -> f64 {
        if self.logarithmic {
            value.clamp(self.range.start, self.range.end).log10()
        } else {
            value.clamp(self.range.start, self.range.end)
        }
    }

    fn placed(&self) -> Range<f64> {
        self.place(self.range.start)..self.place(self.range.end)
    }
}

/// A number with no digits that say nothing.
fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// How a line is drawn.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Line {
    Solid,
    Dashed,
}

/// Sign of a legend entry.
#[derive(Clone, Copy)]
pub(super) enum Sign {
    Line(RGBColor, Line),
    Disc(RGBColor),
    Diamond(RGBColor),
    /// A dashed line in the colour of the text.
    Rule,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// A figure while it is drawn.
pub(super) struct Figure<'a, 'b> {
    root: &'a Area<'b>,
    chart: Chart<'a, 'b>,
    x: Axis,
    y: Axis,
    /// SVG below and above what plotters draws.
    below: String,
    above: String,
}

/// Draws a figure of some size, with a legend in columns above it, and returns the SVG.
pub(super) fn draw(
    size: (u32, u32),
    (x, y): (Axis, Axis),
    legend: &[&[(Sign, String)]],
    description: &str,
    content: impl FnOnce(&mut Figure) -> Result<(), ReportError>,
) -> Result<String, ReportError> {
    let mut svg = String::new();
    let (below, above) = {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let rows = legend.iter().map(|column| column.len()).max().unwrap_or(0) as i32;
        let top = 14 + rows * LEGEND_ROW;
        let chart = ChartBuilder::on(&root)
            .margin_top(top)
            .margin_right(20)
            .x_label_area_size(60)
            .y_label_area_size(68)
            .build_cartesian_2d(x.placed(), y.placed())
            .map_err(ReportError::new)?;
        let (below, above) = (String::new(), String::new());
        let mut figure = Figure { root: &root, chart, x, y, below, above };
        figure.axes()?;
        content(&mut figure)?;
        let width = (size.0 as i32 - 76) / legend.len().max(1) as i32;
        for (column, entries) in legend.iter().enumerate() {
            for (row, (sign, text)) in entries.iter().enumerate() {
                let at = (76 + column as i32 * width, 14 + row as i32 * LEGEND_ROW);
                figure.legend_entry(at, *sign, text)?;
            }
        }
        root.present().map_err(ReportError::new)?;
        (figure.below, figure.above)
    };
    let svg = svg.find('>').map_or("", |end| &svg[end + 1..]).replace("#010203", "currentColor");
    let svg = svg.trim_end().trim_end_matches("</svg>");
    Ok(themed(&format!("{below}{svg}{above}"), size, description))
}

/// Lets a figure scale, take the colour of the text around it, and be read aloud.
pub(super) fn themed(body: &str, (width, height): (u32, u32), description: &str) -> String {
    let description = super::page::escape(description);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\">\n<title>{description}</title>{body}</svg>\n"
    )
}

/// A figure within another, with its corner at a point.
pub(super) fn placed(figure: &str, (x, y): (u32, u32)) -> String {
    figure.replacen("<svg ", &format!("<svg x=\"{x}\" y=\"{y}\" "), 1)
}

/// A figure that stands alone: it brings its own colours for light and dark.
pub(super) fn standalone(svg: &str) -> String {
    let style =
        "<style>svg { color: #1c2430; background: #fff } @media (prefers-color-scheme: dark) \
                 { svg { color: #e6e9ee; background: #11151b } }</style>";
    svg.replacen("\n<title>", &format!("\n{style}\n<title>"), 1)
}

fn text_style<'a>(colour: impl Color, size: i32, h: HPos, v: VPos) -> TextStyle<'a> {
    (FONT, size).into_font().color(&colour.to_rgba()).pos(Pos::new(h, v))
}

impl Figure<'_, '_> {
    fn point(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (self.x.place(x), self.y.place(y))
    }

    fn pixel(&self, at: (f64, f64)) -> (i32, i32) {
        self.chart.backend_coord(&self.point(at))
    }

    fn axes(&self) -> Result<(), ReportError> {
        let (left, right) = (self.x.range.start, self.x.range.end);
        let (bottom, top) = (self.y.range.start, self.y.range.end);
        let grid = INK.mix(0.12);
        let ink = INK.mix(0.75);
        for (tick, label) in &self.x.ticks {
            self.path(&[(*tick, bottom), (*tick, top)], grid.stroke_width(1))?;
            let (x, y) = self.pixel((*tick, bottom));
            self.text(label, (x, y + 8), text_style(ink, TEXT - 1, HPos::Center, VPos::Top))?;
        }
        for (tick, label) in &self.y.ticks {
            self.path(&[(left, *tick), (right, *tick)], grid.stroke_width(1))?;
            let (x, y) = self.pixel((left, *tick));
            self.text(label, (x - 8, y), text_style(ink, TEXT - 1, HPos::Right, VPos::Center))?;
        }
        self.path(&[(left, top), (left, bottom), (right, bottom)], INK.mix(0.5).stroke_width(1))?;
        let (x0, y0) = self.pixel((left, bottom));
        let (x1, y1) = self.pixel((right, top));
        let style = text_style(INK, TEXT, HPos::Center, VPos::Top);
        self.text(&self.x.label, ((x0 + x1) / 2, y0 + 33), style)?;
        let style = text_style(INK, TEXT, HPos::Center, VPos::Top);
        let style = style.transform(FontTransform::Rotate270);
        self.text(&self.y.label, (x0 - 58, (y0 + y1) / 2), style)
    }

    fn path(&self, points: &[(f64, f64)], style: ShapeStyle) -> Result<(), ReportError> {
        let points: Vec<_> = points.iter().map(|&p| self.pixel(p)).collect();
        self.root.draw(&PathElement::new(points, style)).map_err(ReportError::new)
    }

    fn text(&self, text: &str, at: (i32, i32), style: TextStyle) -> Result<(), ReportError> {
        self.root.draw(&Text::new(text.to_owned(), at, style)).map_err(ReportError::new)
    }

    /// A curve; values that are not numbers end it.
    pub fn curve(
        &self,
        points: &[(f64, f64)],
        colour: RGBColor,
        line: Line,
    ) -> Result<(), ReportError> {
        let finite = points.iter().take_while(|p| p.1.is_finite());
        let points: Vec<_> = finite.map(|&p| self.pixel(p)).collect();
        self.pixels(points, colour.stroke_width(2), line)
    }

    fn pixels(
        &self,
        points: Vec<(i32, i32)>,
        style: ShapeStyle,
        line: Line,
    ) -> Result<(), ReportError> {
        match line {
            Line::Solid => self.root.draw(&PathElement::new(points, style)),
            Line::Dashed => self.root.draw(&DashedPathElement::new(points, 6, 4, style)),
        }
        .map_err(ReportError::new)
    }

    /// The area between two curves.
    pub fn band(&self, points: &[(f64, f64, f64)], colour: RGBColor) -> Result<(), ReportError> {
        let finite: Vec<_> =
            points.iter().take_while(|p| p.1.is_finite() && p.2.is_finite()).collect();
        let low = finite.iter().map(|p| self.pixel((p.0, p.1)));
        let high = finite.iter().rev().map(|p| self.pixel((p.0, p.2)));
        let outline: Vec<_> = low.chain(high).collect();
        self.root.draw(&Polygon::new(outline, colour.mix(0.15).filled())).map_err(ReportError::new)
    }

    /// A dashed line in the colour of the text; none to a value that is not a number.
    pub fn rule(&self, from: (f64, f64), to: (f64, f64)) -> Result<(), ReportError> {
        if !from.1.is_finite() || !to.1.is_finite() {
            return Ok(());
        }
        let points = vec![self.pixel(from), self.pixel(to)];
        self.pixels(points, INK.mix(0.55).stroke_width(1), Line::Dashed)
    }

    /// A disc; none for a value that is not a number.
    pub fn disc(
        &self,
        at: (f64, f64),
        radius: i32,
        colour: RGBColor,
        opacity: f64,
    ) -> Result<(), ReportError> {
        if !at.1.is_finite() {
            return Ok(());
        }
        let disc = Circle::new(self.pixel(at), radius, colour.mix(opacity).filled());
        self.root.draw(&disc).map_err(ReportError::new)
    }

    /// A ring, to mark a point of a curve.
    pub fn ring(&self, at: (f64, f64), colour: RGBColor) -> Result<(), ReportError> {
        let ring = Circle::new(self.pixel(at), 5, colour.stroke_width(2));
        self.root.draw(&ring).map_err(ReportError::new)
    }

    /// A straight piece of a thin line in the colour of the text.
    pub fn hairline(&self, from: (f64, f64), to: (f64, f64)) -> Result<(), ReportError> {
        self.path(&[from, to], INK.mix(0.45).stroke_width(1))
    }

    /// A picture below all else, smoothed, from one point to another.
    pub fn backdrop(&mut self, uri: &str, low: (f64, f64), high: (f64, f64)) {
        let ((left, bottom), (right, top)) = (self.pixel(low), self.pixel(high));
        let (width, height) = (right - left, bottom - top);
        self.below.push_str(&format!(
            "<image x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" \
             preserveAspectRatio=\"none\" href=\"{uri}\"/>\n"
        ));
    }

    /// A disc that jumps from point to point, all in `seconds`, over and over.
    pub fn traveller(&mut self, points: &[(f64, f64)], colour: RGBColor, seconds: f64) {
        let RGBColor(r, g, b) = colour;
        let pixels: Vec<_> = points.iter().map(|&point| self.pixel(point)).collect();
        let Some((x, y)) = pixels.first() else { return };
        let xs: Vec<_> = pixels.iter().map(|p| p.0).collect();
        let ys: Vec<_> = pixels.iter().map(|p| p.1).collect();
        let moves = jumps("cx", &xs, seconds) + &jumps("cy", &ys, seconds);
        self.above.push_str(&format!(
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"6\" fill=\"#{r:02x}{g:02x}{b:02x}\">{moves}</circle>\n"
        ));
    }

    /// A diamond; none for a value that is not a number.
    pub fn diamond(&self, at: (f64, f64), colour: RGBColor) -> Result<(), ReportError> {
        if !at.1.is_finite() {
            return Ok(());
        }
        self.root.draw(&diamond(self.pixel(at), colour)).map_err(ReportError::new)
    }

    /// A vertical bar from one value to another.
    pub fn error_bar(
        &self,
        (x, low, high): (f64, f64, f64),
        colour: RGBColor,
    ) -> Result<(), ReportError> {
        self.path(&[(x, low), (x, high)], colour.stroke_width(2))
    }

    /// A note beside a point, `offset` pixels away from it; none beside a value that
    /// is not a number.
    pub fn note(
        &self,
        text: &str,
        at: (f64, f64),
        offset: (i32, i32),
        colour: Option<RGBColor>,
    ) -> Result<(), ReportError> {
        if !at.1.is_finite() {
            return Ok(());
        }
        let (x, y) = self.pixel(at);
        let h = if offset.0 < 0 { HPos::Right } else { HPos::Left };
        let style = text_style(colour.unwrap_or(INK), TEXT, h, VPos::Center);
        self.text(text, (x + offset.0, y + offset.1), style)
    }

    fn legend_entry(&self, (x, y): (i32, i32), sign: Sign, text: &str) -> Result<(), ReportError> {
        let line = vec![(x, y), (x + 26, y)];
        match sign {
            Sign::Line(colour, line_style) => {
                self.pixels(line, colour.stroke_width(2), line_style)?;
            }
            Sign::Rule => self.pixels(line, INK.mix(0.55).stroke_width(1), Line::Dashed)?,
            Sign::Disc(colour) => {
                let disc = Circle::new((x + 13, y), 6, colour.filled());
                self.root.draw(&disc).map_err(ReportError::new)?;
            }
            Sign::Diamond(colour) => {
                self.root.draw(&diamond((x + 13, y), colour)).map_err(ReportError::new)?;
            }
        }
        self.text(text, (x + 36, y), text_style(INK, TEXT, HPos::Left, VPos::Center))
    }
}

/// Values that an attribute takes one after the other, all in `seconds`, over and
/// over; no script moves it.
pub(super) fn jumps(attribute: &str, values: &[i32], seconds: f64) -> String {
    let values = values.iter().map(i32::to_string).collect::<Vec<_>>().join(";");
    format!(
        "<animate attributeName=\"{attribute}\" calcMode=\"discrete\" values=\"{values}\" \
         dur=\"{seconds}s\" repeatCount=\"indefinite\"/>"
    )
}

fn diamond((x, y): (i32, i32), colour: RGBColor) -> Polygon<(i32, i32)> {
    Polygon::new([(x, y - 7), (x + 7, y), (x, y + 7), (x - 7, y)], colour.filled())
}
