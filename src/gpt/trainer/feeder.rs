//! Threads of the host that draw a training's batches ahead, for a device that does not draw them
//! itself.

use std::sync::mpsc::{sync_channel, Receiver, Sender, SyncSender};
use std::thread::JoinHandle;

use super::batch::Batch;
use crate::checkpoints::PairSampler;
use crate::engine::EngineError;
use crate::gpt::NoiseSchedule;

/// Bytes of batches that are drawn ahead.
const AHEAD: usize = 2 << 30;

/// How batches are drawn.
pub(super) struct Draws<'a> {
    pub pairs: &'a PairSampler,
    pub schedule: &'a NoiseSchedule,
    pub seed: u64,
    pub samples: usize,
    pub end: u64,
}

impl Draws<'_> {
    /// The batch of a step, from a feeder that is started anew if it is at another step.
    pub fn take(
        &self,
        feeder: &mut Option<Feeder>,
        threads: usize,
        step: u64,
    ) -> Result<Batch, EngineError> {
        match feeder {
            Some(feeder) if feeder.next == step => feeder.take(),
            _ => feeder.insert(Feeder::new(self, threads, step)?).take(),
        }
    }
}

/// Threads that draw the batches of the steps to come, each every so many steps.
pub(super) struct Feeder {
    next: u64,
    workers: Vec<Worker>,
}

struct Worker {
    ready: Receiver<Batch>,
    /// Buffers to draw into again.
    used: Sender<Batch>,
    thread: JoinHandle<()>,
}

impl Feeder {
    fn new(draws: &Draws<'_>, threads: usize, first: u64) -> Result<Self, EngineError> {
        let size = draws.pairs.dataset().layout().num_parameters();
        // Each thread has a batch that is ready, one that it draws, and one that is used.
        let most = AHEAD / (3 * 4 * 4 * size * draws.samples).max(1);
        let count = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let count = count.clamp(1, most.max(1));
        let mut feeder = Self { next: first, workers: Vec::with_capacity(count) };
        for worker in 0..count {
            let (send, ready) = sync_channel(1);
            let (used, again) = std::sync::mpsc::channel();
            let (pairs, schedule) = (draws.pairs.clone(), draws.schedule.clone());
            // The thread `i` of `n` draws the steps `i`, `i + n`, ..
            let turns = count as u64;
            let from = first + (worker as u64 + turns - first % turns) % turns;
            let steps = (from..draws.end).step_by(count);
            let (seed, samples) = (draws.seed, draws.samples);
            let work = move || draw(steps, pairs, schedule, seed, [samples, size], send, again);
            let thread = std::thread::Builder::new()
                .name(format!("lopt-batches-{worker}"))
                .spawn(work)
                .map_err(|e| EngineError::Threads { threads: count, problem: e.to_string() })?;
            feeder.workers.push(Worker { ready, used, thread });
        }
        Ok(feeder)
    }

    fn worker(&self, step: u64) -> &Worker {
        &self.workers[(step % self.workers.len() as u64) as usize]
    }

    fn take(&mut self) -> Result<Batch, EngineError> {
        let gone = |_| EngineError::Threads {
            threads: self.workers.len(),
            problem: "a thread that draws batches has ended".into(),
        };
        let batch = self.worker(self.next).ready.recv().map_err(gone)?;
        self.next += 1;
        Ok(batch)
    }

    pub fn give_back(&self, batch: Batch) {
        // A thread that has drawn its last batch needs no buffers.
        let _ = self.worker(batch.step).used.send(batch);
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        for Worker { ready, thread, .. } in self.workers.drain(..) {
            // A thread ends when nobody waits for its batches.
            drop(ready);
            let _ = thread.join();
        }
    }
}

/// What a thread does.
fn draw(
    steps: impl Iterator<Item = u64>,
    mut pairs: PairSampler,
    schedule: NoiseSchedule,
    seed: u64,
    [samples, size]: [usize; 2],
    ready: SyncSender<Batch>,
    again: Receiver<Batch>,
) {
    for step in steps {
        let mut batch = again.try_recv().unwrap_or_else(|_| Batch::new(samples, size));
        batch.draw((step, step), &mut pairs, &schedule, seed);
        if ready.send(batch).is_err() {
            return;
        }
    }
}
