//! Small pictures inside a figure: weights of units, and maps of a metric.
//!
//! They are PNG files in the figure's text, so that a page stays one file. Weights
//! are drawn in two colours that fade to nothing at zero, which can be read on
//! light and on dark pages; where there are three channels, as colours about grey.

use base64::prelude::{Engine, BASE64_STANDARD};
use plotters::style::RGBColor;

use super::figure::{LEARNED, TEAL};
use super::ReportError;
use crate::eval::walk::Filters;

/// Colour of weights above zero.
pub(super) const ABOVE: RGBColor = LEARNED;
/// Colour of weights below zero.
pub(super) const BELOW: RGBColor = TEAL;
/// Pixels between two pictures.
const GAP: usize = 1;
/// Share of the weights whose size is within the scale; larger ones are drawn alike.
const WITHIN: f64 = 0.995;

/// Steps from clear to the full colour: few, for a file half as large.
const LEVELS: f64 = 31.0;

/// How weights become colours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale(f64);

impl Scale {
    /// The scale of some weights.
    pub fn of(weights: &[f32]) -> Self {
        let mut sizes: Vec<f64> = weights.iter().map(|w| f64::from(w.abs())).collect();
        sizes.sort_by(f64::total_cmp);
        let last = sizes.len().saturating_sub(1);
        let largest = sizes.get((WITHIN * last as f64).round() as usize).copied();
        Self(largest.filter(|&size| size > 0.0).unwrap_or(1.0))
    }

    /// How much finer another scale is.
    pub fn over(self, other: Self) -> f64 {
        self.0 / other.0
    }

    /// -1 to 1.
    fn relative(self, weight: f32) -> f64 {
        (f64::from(weight) / self.0).clamp(-1.0, 1.0)
    }

    fn signed(self, weight: f32) -> [u8; 4] {
        let relative = self.relative(weight);
        let RGBColor(r, g, b) = if relative < 0.0 { BELOW } else { ABOVE };
        let level = (LEVELS * relative.abs()).round();
        [r, g, b, (255.0 * level / LEVELS).round() as u8]
    }

    fn about_grey(self, weight: f32) -> u8 {
        (127.5 + 127.5 * self.relative(weight)).round() as u8
    }
}

/// A canvas of pixels, transparent at first.
pub(super) struct Canvas {
    width: usize,
    pixels: Vec<[u8; 4]>,
}

impl Canvas {
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, pixels: vec![[0; 4]; width * height] }
    }

    /// A map of values from 0 to 1, the first row at the bottom: a colour that fades
    /// as the value rises.
    pub fn map(shares: &[f64], columns: usize, colour: RGBColor) -> Self {
        let mut canvas = Self::new(columns, shares.len() / columns);
        let rows = shares.chunks_exact(columns).rev();
        for (pixel, share) in canvas.pixels.iter_mut().zip(rows.flatten()) {
            let alpha = (255.0 * (1.0 - share.clamp(0.0, 1.0))).round() as u8;
            *pixel = [colour.0, colour.1, colour.2, alpha];
        }
        canvas
    }

    /// Draws the picture of one unit with its corner at a pixel.
    pub fn picture(&mut self, at: (usize, usize), filters: &Filters, values: &[f32], scale: Scale) {
        let [channels, height, width] = filters.shape;
        let plane = height * width;
        for pixel in 0..plane {
            let colour = match channels {
                3 => {
                    let [r, g, b] = [0, 1, 2].map(|c| scale.about_grey(values[c * plane + pixel]));
                    [r, g, b, 255]
                }
                // Channels that are no colours are drawn as their mean.
                _ => {
                    let channel = |c: usize| values[c * plane + pixel];
                    scale.signed((0..channels).map(channel).sum::<f32>() / channels as f32)
                }
            };
            let (x, y) = (at.0 + pixel % width, at.1 + pixel / width);
            self.pixels[y * self.width + x] = colour;
        }
    }

    /// The canvas as a PNG file in a `data:` address.
    pub fn uri(&self) -> Result<String, ReportError> {
        let mut file = Vec::new();
        let height = self.pixels.len() / self.width;
        let mut encoder = png::Encoder::new(&mut file, self.width as u32, height as u32);
        encoder.set_color(png::ColorType::Rgba);
        encoder.set_compression(png::Compression::High);
        let mut writer = encoder.write_header().map_err(ReportError::new)?;
        let bytes: Vec<u8> = self.pixels.iter().flatten().copied().collect();
        writer.write_image_data(&bytes).map_err(ReportError::new)?;
        writer.finish().map_err(ReportError::new)?;
        Ok(format!("data:image/png;base64,{}", BASE64_STANDARD.encode(file)))
    }
}

/// Pictures of all units side by side, in rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    pub units: usize,
    pub columns: usize,
    tile: (usize, usize),
}

impl Tiling {
    /// Rows of `columns` pictures of the first `units` units.
    pub fn new(filters: &Filters, units: usize, columns: usize) -> Self {
        let [_, height, width] = filters.shape;
        Self { units, columns, tile: (width + GAP, height + GAP) }
    }

    /// Wider than high, with few places left empty, of at most `most` units.
    pub fn wide(filters: &Filters, most: usize) -> Self {
        let units = filters.units.min(most);
        let off = |columns: &usize| {
            let rows = units.div_ceil(*columns);
            let empty = (rows * columns - units) as f64 / units as f64;
            (*columns as f64 / rows as f64 / 2.5).ln().abs() + 3.0 * empty
        };
        let columns = (1..=units).min_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or(1);
        Self::new(filters, units, columns)
    }

    /// Width and height in pixels, with a gap after each picture.
    pub fn size(&self) -> (usize, usize) {
        (self.columns * self.tile.0, self.units.div_ceil(self.columns) * self.tile.1)
    }

    /// Draws the pictures of one layer's weights with their corner at a pixel.
    pub fn draw(
        &self,
        canvas: &mut Canvas,
        (x, y): (usize, usize),
        filters: &Filters,
        weights: &[f32],
        scale: Scale,
    ) {
        let size = filters.shape.iter().product::<usize>();
        let pictures = weights.chunks_exact(size);
        for (unit, values) in pictures.take(self.units).enumerate() {
            let at = (x + unit % self.columns * self.tile.0, y + unit / self.columns * self.tile.1);
            canvas.picture(at, filters, values, scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(units: usize, shape: [usize; 3]) -> Filters {
        Filters { tensor: "weight".into(), offset: 0, units, shape }
    }

    fn decoded(uri: &str) -> (u32, u32, Vec<u8>) {
        let file = BASE64_STANDARD.decode(uri.strip_prefix("data:image/png;base64,").unwrap());
        let decoder = png::Decoder::new(std::io::Cursor::new(file.unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        (info.width, info.height, bytes)
    }

    #[test]
    fn weights_fade_to_nothing_at_zero() {
        let filters = filters(2, [1, 1, 2]);
        let network = [1.0, -0.5, 0.0, 2.0];
        let tiling = Tiling::new(&filters, 2, 1);
        let (width, height) = tiling.size();
        assert_eq!((width, height), (3, 4));
        let mut canvas = Canvas::new(width, height);
        tiling.draw(&mut canvas, (0, 0), &filters, &network, Scale(1.0));
        let (width, height, bytes) = decoded(&canvas.uri().unwrap());
        assert_eq!((width, height), (3, 4));
        let pixel = |x: usize, y: usize| &bytes[4 * (y * 3 + x)..][..4];
        assert_eq!(pixel(0, 0), [ABOVE.0, ABOVE.1, ABOVE.2, 255]);
        assert_eq!(pixel(1, 0), [BELOW.0, BELOW.1, BELOW.2, 132]);
        assert_eq!(pixel(0, 2)[3], 0);
        assert_eq!(pixel(1, 2)[3], 255, "beyond the scale");
        assert_eq!((pixel(2, 0)[3], pixel(0, 1)[3]), (0, 0), "gaps");
    }

    #[test]
    fn three_channels_are_colours() {
        let filters = filters(1, [3, 1, 1]);
        let mut canvas = Canvas::new(1, 1);
        canvas.picture((0, 0), &filters, &[1.0, 0.0, -1.0], Scale(1.0));
        assert_eq!(canvas.pixels, [[255, 128, 0, 255]]);
    }

    #[test]
    fn a_map_fades_upwards() {
        let canvas = Canvas::map(&[0.0, 1.0, 1.0, 0.5], 2, TEAL);
        let alpha: Vec<u8> = canvas.pixels.iter().map(|pixel| pixel[3]).collect();
        assert_eq!(alpha, [0, 128, 255, 0]);
    }

    #[test]
    fn tilings_are_wide_and_hold_all_units() {
        for (units, columns) in [(1, 1), (10, 5), (16, 8), (32, 8), (100, 13)] {
            let tiling = Tiling::wide(&filters(units, [1, 8, 8]), 64);
            assert_eq!((tiling.units, tiling.columns), (units.min(64), columns), "{units}");
        }
    }

    #[test]
    fn a_scale_leaves_out_the_largest_few() {
        let mut weights: Vec<f32> = (0..1000).map(|i| i as f32 / 1000.0).collect();
        weights[0] = -100.0;
        assert!((Scale::of(&weights).0 - 0.995).abs() < 0.002);
        assert_eq!(Scale::of(&[0.0, 0.0]), Scale(1.0));
        assert_eq!(Scale::of(&[]), Scale(1.0));
    }
}
