//! Starting networks that a G.pt has made.
//!
//! A recursive update starts at a sample, which no recorded training has passed
//! through: it is a little blurred, and an optimizer that has only seen trainings
//! from random initialisations makes it worse, not better. So some runs are
//! recorded from samples of an earlier G.pt, as it will meet them.
//!
//! # Source
//! The idea of recording from what the learner itself does: Ross et al. 2011,
//! arXiv:1011.0686 (DAgger).

use std::collections::HashMap;
use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::{RecordingError, Seeds, Task};
use crate::gpt::Gpt;

/// Share of the starts that two updates in a row lead to, instead of one.
const TWICE: f64 = 0.4;
/// Worst prompt, as a share of the way from the best one to the present metric.
const WORST: f64 = 0.7;

/// Networks to start recorded runs at, by the number of the run.
#[derive(Clone, Debug, Default)]
pub struct Starts {
    networks: HashMap<u64, Vec<f32>>,
    /// Hash of the weights that made them.
    origin: String,
}

impl Starts {
    /// Updates of fresh initialisations, prompted with values of the whole range,
    /// the best of it most often. Everything follows from `seed` (the user's seed
    /// of the recording) and the seed of `gpt`.
    ///
    /// # Errors
    /// If the task or the optimizer fails.
    pub fn sample(
        task: &dyn Task,
        gpt: &mut Gpt,
        seed: u64,
        runs: Range<u64>,
    ) -> Result<Self, RecordingError> {
        let seeds = Seeds::recording(seed)?;
        let condition = gpt.weights().header.metric;
        let index = task.kinds().iter().position(|&kind| kind == condition.kind).unwrap_or(0);
        let size = gpt.weights().header.layout.num_parameters();
        let best = gpt.weights().header.prompt_range.best;
        let direction = condition.kind.direction();
        let measure = |networks: &[f32]| -> Result<Vec<f64>, RecordingError> {
            let rows = networks.chunks_exact(size);
            rows.map(|row| Ok(task.measure(row, condition.split)?[index])).collect()
        };
        let mut starts = HashMap::new();
        let runs: Vec<u64> = runs.collect();
        for chunk in runs.chunks(256) {
            let mut draws = Vec::with_capacity(chunk.len());
            let mut fresh = Vec::with_capacity(chunk.len() * size);
            for &run in chunk {
                let seed = seeds.run(run)?;
                fresh.extend(task.initial(seed)?);
                draws.push(ChaCha8Rng::seed_from_u64(seed).gen::<[f64; 3]>());
            }
            let current = measure(&fresh)?;
            let prompt = |current: f64, share: f64| match direction.is_better(best, current) {
                true => best + (current - best) * share,
                false => current,
            };
            let prompts: Vec<f64> = current
                .iter()
                .zip(&draws)
                .map(|(&current, draw)| prompt(current, WORST * draw[0].powi(3)))
                .collect();
            let mut sampled = gpt.sample(&fresh, &current, &prompts)?;
            let current = measure(&sampled)?;
            let prompts: Vec<f64> = current
                .iter()
                .zip(&draws)
                .map(|(&current, draw)| prompt(current, draw[1].powi(2)))
                .collect();
            let again = gpt.sample(&sampled, &current, &prompts)?;
            let rows = sampled.chunks_exact_mut(size).zip(again.chunks_exact(size));
            for ((once, twice), (&run, draw)) in rows.zip(chunk.iter().zip(&draws)) {
                if draw[2] < TWICE {
                    once.copy_from_slice(twice);
                }
                starts.insert(run, once.to_vec());
            }
        }
        let mut hash = Sha256::new();
        gpt.weights().parameters.iter().for_each(|value| hash.update(value.to_le_bytes()));
        let origin = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { networks: starts, origin })
    }

    /// The network that a run starts at, if it is one of these.
    pub fn get(&self, run: u64) -> Option<&[f32]> {
        self.networks.get(&run).map(Vec::as_slice)
    }

    /// How a run starts, as it is recorded with it.
    pub(super) fn describe(&self, run: u64) -> serde_json::Value {
        match self.networks.contains_key(&run) {
            true => serde_json::json!({ "start": "sample", "weights": self.origin }),
            false => serde_json::json!({ "start": "initialisation" }),
        }
    }
}
