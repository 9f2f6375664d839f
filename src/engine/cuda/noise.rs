//! Gaussian noise from a seed, drawn on a device: what `StandardNormal` makes of `ChaCha8Rng`.
//!
//! Both are of crates that keep their values the same from release to release. ChaCha8 counts
//! its blocks, so each can be had by itself, but how many of its words a value takes depends on
//! these words; how that is done at once is said in `kernels/noise.cu`.

use rand::rngs::mock::StepRng;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use super::backend::{parts, staged_len, Address, Backend};
use super::buffers::{arguments, Cuda};
use super::check::Check;
use crate::engine::{DeviceError, Math};

/// Threads of a block, and words of a stream that are its own: as in `kernels/noise.cu`.
const THREADS: usize = 128;
const WORDS: usize = 8 * THREADS - 64;
/// Layers of the ziggurat.
const LAYERS: usize = 256;

/// Streams of noise on a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoiseStreams {
    pub streams: usize,
    /// Values of a stream in one draw, at most.
    each: usize,
    /// Key of the seed, and the number of the first stream.
    key: Address,
    /// The word of each stream that this draw begins at.
    pub positions: Address,
    /// The word that the next one begins at.
    pub next: Address,
    counts: Address,
    layers: Address,
}

impl NoiseStreams {
    /// Blocks that go through all words that a draw can take. A value takes 1.02 words on
    /// average; that 6 % and 512 more do not suffice is more than 20 standard deviations away.
    fn blocks(each: usize) -> usize {
        (each + each / 16 + 512).div_ceil(WORDS)
    }

    fn sizes(streams: usize, each: usize) -> [usize; 5] {
        [4 * 10, 8 * streams, 8 * streams, 4 * streams * Self::blocks(each), 16 * (LAYERS + 1)]
    }

    /// Bytes of memory that they need.
    pub fn bytes(streams: usize, each: usize) -> usize {
        Self::sizes(streams, each).map(staged_len).iter().sum()
    }

    /// In memory of [`bytes`](Self::bytes).
    pub fn new<B: Backend>(
        backend: &mut B,
        at: Address,
        streams: usize,
        each: usize,
    ) -> Result<Self, DeviceError> {
        let [key, positions, next, counts, layers] = parts(at, Self::sizes(streams, each));
        backend.upload(layers, bytemuck::cast_slice(&ziggurat()))?;
        Ok(Self { streams, each, key, positions, next, counts, layers })
    }

    /// Begins the streams of a seed that are numbered from `first` on.
    pub fn seed<B: Backend>(
        &self,
        backend: &mut B,
        seed: u64,
        first: u64,
    ) -> Result<(), DeviceError> {
        let mut key = [0u8; 40];
        key[..32].copy_from_slice(&ChaCha8Rng::seed_from_u64(seed).get_seed());
        key[32..].copy_from_slice(&first.to_le_bytes());
        backend.upload(self.key, &key)?;
        backend.zero(self.next, 8 * self.streams)
    }

    /// Draws `count` values in all, stream after stream, from where `positions` are, and sets
    /// `next`; neither in a `step` whose weight of noise is 0.
    pub fn draw<B: Backend>(
        &self,
        ops: &mut Cuda<B>,
        to: Address,
        step: Address,
        temperature: f32,
        count: usize,
    ) {
        let Self { streams, each, key, positions, next, counts, layers } = *self;
        let blocks = [Self::blocks(each), streams];
        let arguments = arguments![counts, positions, key, layers, step];
        ops.attempt(|backend| backend.launch("noise_counts", blocks, THREADS, arguments));
        let arguments = arguments![
            to,
            next,
            counts,
            positions,
            key,
            layers,
            step,
            temperature,
            each as i64,
            count as i64
        ];
        ops.attempt(|backend| backend.launch("noise_values", blocks, THREADS, arguments));
    }
}

/// Widths of the ziggurat's layers, and the density at each. The crate does not show them, but
/// gives half a width for the word that asks for the middle of a layer.
fn ziggurat() -> Vec<f64> {
    let width = |layer: u64| -> f64 {
        // The upper 52 bits are the place in the layer, from -1 to 1. A second word, u64::MAX, is
        // asked for in the topmost layer only, and then accepts.
        let word = 0xc << 60 | layer;
        2.0 * StepRng::new(word, u64::MAX - word).sample::<f64, _>(StandardNormal)
    };
    let mut layers: Vec<f64> = (0..LAYERS as u64).map(width).chain([0.0]).collect();
    let density: Vec<f64> = layers.iter().map(|x| (-x * x / 2.0).exp()).collect();
    layers.extend(density);
    layers
}

/// Noise of a device against that of the host: values, and where in the streams draws end.
pub(crate) fn checks<B: Backend>(backend: B) -> Result<Vec<Check>, DeviceError> {
    const ROW: usize = 7;
    let lengths = super::Lengths { parameters: 0, arena: 0, narrow_arena: 0, training: false };
    let mut ops = Cuda::new(backend, Math::F32, lengths)?;
    // The second step draws nothing.
    let mut table = [1f32; 3 * ROW];
    table[2 * ROW - 1] = 0.0;
    let mut checks = Vec::new();
    // (values of a stream, values in all), seed and first stream.
    for (each, count, seed, first) in [
        (1usize, 1usize, 0, 0),
        (700, 1300, 5, u64::MAX),
        (3001, 3001, 7, 1 << 40),
        (60_013, 150_000, 9, 3),
    ] {
        let (streams, temperature) = (count.div_ceil(each), 0.7);
        let mut room = |bytes: usize| ops.backend.allocate(bytes);
        let [memory, rows, step, turn, to] =
            [NoiseStreams::bytes(streams, each), 4 * table.len(), 4 * ROW, 4, 4 * count]
                .map(&mut room);
        let (rows, step, turn, to) = (rows?, step?, turn?, to?);
        let noise = NoiseStreams::new(&mut ops.backend, memory?, streams, each)?;
        ops.backend.upload(rows, bytemuck::cast_slice(&table))?;
        noise.seed(&mut ops.backend, seed, first)?;
        let mut hosts: Vec<ChaCha8Rng> = (0..streams as u64)
            .map(|stream| {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(first.wrapping_add(stream));
                rng
            })
            .collect();
        let mut error = 0f64;
        let mut expected = Vec::new();
        for draw in 0..3 {
            let (positions, next) = (noise.positions, noise.next);
            let arguments =
                arguments![step, turn, positions, rows, next, ROW as i32, streams as i32];
            ops.attempt(|backend| backend.launch("take_step", [1, 1], 256, arguments));
            noise.draw(&mut ops, to, step, temperature, count);
            ops.check()?;
            if draw != 1 {
                expected.clear();
                let ends = (0..streams).map(|s| each.min(count - s * each));
                for (rng, values) in hosts.iter_mut().zip(ends) {
                    let mut value = || rng.sample::<f64, _>(StandardNormal) as f32 * temperature;
                    expected.extend((0..values).map(|_| value()));
                }
            }
            let mut found = vec![0f32; count];
            ops.backend.download(to, bytemuck::cast_slice_mut(&mut found))?;
            for (found, expected) in found.iter().zip(&expected) {
                let apart = f64::from((found - expected).abs());
                error = error.max(if apart.is_nan() { f64::INFINITY } else { apart });
            }
            let mut ends = vec![0u64; streams];
            ops.backend.download(next, bytemuck::cast_slice_mut(&mut ends))?;
            let same = |(end, rng): (&u64, &ChaCha8Rng)| u128::from(2 * end) == rng.get_word_pos();
            if !ends.iter().zip(&hosts).all(same) {
                error = f64::INFINITY;
            }
        }
        // A logarithm may be rounded differently.
        let name = format!("noise, {each} values of a stream");
        checks.push(Check { name, error, tolerance: 5e-7 });
    }
    Ok(checks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cuda::emulator::Emulator;

    #[test]
    fn noise_of_an_emulated_device_is_the_host_s() {
        let Some(emulator) = Emulator::new() else { return };
        let checks = checks(emulator).unwrap();
        let wrong: Vec<_> = checks.iter().filter(|check| !check.passes()).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(checks.len(), 4);
    }

    #[test]
    fn layers_are_of_one_area() {
        let table = ziggurat();
        let (x, density) = table.split_at(LAYERS + 1);
        assert_eq!(x[1], 3.654_152_885_361_009);
        assert!(x.windows(2).all(|pair| pair[0] > pair[1]));
        let area = x[0] * density[1];
        for i in 1..LAYERS {
            let own = x[i] * (density[i + 1] - density[i]);
            assert!((own / area - 1.0).abs() < 1e-9, "layer {i}: {own}, expected {area}");
        }
    }

    #[test]
    fn a_draw_takes_fewer_words_than_there_are_blocks_for() {
        for each in [1, 10, 1000, 100_000] {
            let mut rng = ChaCha8Rng::seed_from_u64(each as u64);
            let drawn = (&mut rng).sample_iter::<f64, _>(StandardNormal).take(each);
            assert!(drawn.sum::<f64>().is_finite());
            let words = rng.get_word_pos() as f64 / 2.0;
            assert!(words <= 1.03 * each as f64 + 10.0, "{words} words for {each} values");
        }
    }
}
