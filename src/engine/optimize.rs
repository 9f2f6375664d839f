//! AdamW over flat buffers.

use std::ops::Range;

use rayon::prelude::*;

use super::cpu::{AdamStep, SumOfSquares};
use super::{Float, Threads};

/// Settings of AdamW.
///
/// # Source
/// Loshchilov and Hutter 2017, arXiv:1711.05101; defaults of `torch.optim.AdamW`
/// but for the weight decay, which is the G.pt code's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Size of a step. Default 4e-4.
    pub learning_rate: f64,
    /// Decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment. Default 0.999.
    pub beta2: f64,
    /// Added to the deviation. Default 1e-8.
    pub epsilon: f64,
    /// Share of a parameter that is taken off at learning rate 1. Default 0.1.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { learning_rate: 4e-4, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 }
    }
}

/// What one step of [`adamw_ema`] reads and changes; all buffers are of one length.
#[derive(Debug)]
pub struct Update<'a, F> {
    /// Number of this step, from 1.
    pub step: u64,
    /// Gradient of the loss.
    pub gradient: &'a [F],
    /// Multiplies the gradient (clipping), 1 for none.
    pub gradient_scale: f64,
    /// Positions of the parameters that decay, ascending and disjoint.
    pub decayed: &'a [Range<usize>],
    /// The parameters.
    pub parameters: &'a mut [F],
    /// First moment, zeros at the start.
    pub first: &'a mut [F],
    /// Second moment, zeros at the start.
    pub second: &'a mut [F],
    /// Moving average of the parameters, a copy of them at the start.
    pub average: &'a mut [F],
    /// Share of the average that is kept in a step.
    pub average_decay: f64,
}

/// Parameters that one thread takes at once.
const CHUNK: usize = 1 << 14;

/// One step of AdamW, and of the moving average of the parameters after it, in
/// one pass over memory.
///
/// # Panics
/// If the buffers differ in length.
pub fn adamw_ema<F: Float>(threads: &Threads, settings: &AdamW, update: Update<'_, F>) {
    let Update { step, gradient, parameters, first, second, average, .. } = update;
    let length = parameters.len();
    for other in [gradient.len(), first.len(), second.len(), average.len()] {
        assert_eq!(other, length, "buffers of an update");
    }
    let steps = step as f64;
    let adam = AdamStep {
        gradient_scale: F::from_f64(update.gradient_scale),
        beta1: F::from_f64(settings.beta1),
        beta2: F::from_f64(settings.beta2),
        epsilon: F::from_f64(settings.epsilon),
        step_size: F::from_f64(settings.learning_rate / (1.0 - settings.beta1.powf(steps))),
        correction: F::from_f64((1.0 - settings.beta2.powf(steps)).sqrt().recip()),
        keep: F::one(),
        average_decay: F::from_f64(update.average_decay),
        gradient: &[],
    };
    let keep = F::from_f64(1.0 - settings.learning_rate * settings.weight_decay);
    let decayed = update.decayed;
    let run = |start: usize, [p, m, v, a]: [&mut [F]; 4]| {
        for_each_part(decayed, start..start + p.len(), |part, decays| {
            let own = part.start - start..part.end - start;
            let keep = if decays { keep } else { F::one() };
            AdamStep { keep, gradient: &gradient[part], ..adam }.run(
                &mut p[own.clone()],
                &mut m[own.clone()],
                &mut v[own.clone()],
                &mut a[own],
            );
        });
    };
    if threads.count() == 1 {
        return run(0, [parameters, first, second, average]);
    }
    threads.install(|| {
        parameters
            .par_chunks_mut(CHUNK)
            .zip(first.par_chunks_mut(CHUNK))
            .zip(second.par_chunks_mut(CHUNK))
            .zip(average.par_chunks_mut(CHUNK))
            .enumerate()
            .for_each(|(chunk, (((p, m), v), a))| run(chunk * CHUNK, [p, m, v, a]));
    });
}

/// Cuts `all` into parts that lie inside one of `ranges` or between them.
fn for_each_part(
    ranges: &[Range<usize>],
    all: Range<usize>,
    mut visit: impl FnMut(Range<usize>, bool),
) {
    let mut at = all.start;
    let first = ranges.partition_point(|range| range.end <= at);
    for range in &ranges[first..] {
        if range.start >= all.end {
            break;
        }
        if at < range.start {
            visit(at..range.start, false);
            at = range.start;
        }
        let end = range.end.min(all.end);
        visit(at..end, true);
        at = end;
    }
    if at < all.end {
        visit(at..all.end, false);
    }
}

/// Length of a gradient as one vector.
pub fn global_norm<F: Float>(gradient: &[F]) -> f64 {
    SumOfSquares::of(gradient).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_follows_the_formulas_and_spares_what_does_not_decay() {
        let n = CHUNK + 37;
        let wave = |i: usize| ((i * 7 % 31) as f64 - 15.0) / 10.0;
        let gradient: Vec<f32> = (0..n).map(|i| wave(i) as f32).collect();
        let mut parameters: Vec<f32> = (0..n).map(|i| wave(i + 3) as f32).collect();
        let before = parameters.clone();
        let (mut first, mut second) = (vec![0.0; n], vec![0.0; n]);
        let mut average = parameters.clone();
        let settings = AdamW { learning_rate: 0.01, ..AdamW::default() };
        let decayed = [5..9, CHUNK - 3..CHUNK + 11];
        for (step, threads) in [(1, 1), (2, 2)] {
            let threads = Threads::new(threads).unwrap();
            adamw_ema(
                &threads,
                &settings,
                Update {
                    step,
                    gradient: &gradient,
                    gradient_scale: 0.5,
                    decayed: &decayed,
                    parameters: &mut parameters,
                    first: &mut first,
                    second: &mut second,
                    average: &mut average,
                    average_decay: 0.9,
                },
            );
        }
        for i in 0..n {
            let g = 0.5 * f64::from(gradient[i]);
            let keep = if decayed.iter().any(|r| r.contains(&i)) { 1.0 - 0.01 * 0.1 } else { 1.0 };
            let (mut p, mut m, mut v) = (f64::from(before[i]), 0.0, 0.0);
            let mut a = p;
            for t in 1..=2 {
                m = 0.9 * m + 0.1 * g;
                v = 0.999 * v + 0.001 * g * g;
                let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.999f64.powi(t)));
                p = p * keep - 0.01 * m_hat / (v_hat.sqrt() + 1e-8);
                a = 0.9 * a + 0.1 * p;
            }
            assert!((f64::from(parameters[i]) - p).abs() < 1e-6, "parameter {i}");
            assert!((f64::from(average[i]) - a).abs() < 1e-6, "average {i}");
        }
    }

    #[test]
    fn norm_of_a_gradient() {
        let gradient: Vec<f32> = (0..3001).map(|i| (i % 5) as f32).collect();
        let squares: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum();
        assert!((global_norm(&gradient) - squares.sqrt()).abs() < 1e-9);
    }
}
