//! Runs a transformer on the CPU.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::embedding::embed;
use super::transformer::{Arena, Training, Transformer};
use crate::engine::cpu::{scratch_len, AlignedBuffer, Cpu, PackedParameters, Panels};
use crate::engine::{zeros, EngineError, Float, Ops, Threads};

/// What G.pt is given for a batch of networks.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, F> {
    /// Noised future parameters, normalised, `[N, P]`.
    pub noised: &'a [F],
    /// Starting parameters, normalised, `[N, P]`.
    pub start: &'a [F],
    /// Diffusion timestep, in the numbering of the full schedule, `[N]`.
    pub timestep: &'a [F],
    /// Wanted metric minus present metric, `[N]`. Training forms it in `f64`.
    pub delta: &'a [F],
    /// Wanted metric, `[N]`; not read without absolute conditioning.
    pub target: &'a [F],
    /// Present metric, `[N]`; not read without absolute conditioning.
    pub current: &'a [F],
}

/// What the output is compared with in training.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a, F> {
    /// Wanted output, `[N, P]`.
    pub values: &'a [F],
    /// Weight of every entry of the output, `[P]`; all one if none.
    pub entry_weights: Option<&'a [F]>,
    /// Weight of every sample, `[N]`; all one if none.
    pub sample_weights: Option<&'a [F]>,
    /// What else is minimised, besides the squared error.
    pub penalty: Option<&'a dyn Penalty<F>>,
}

impl<'a, F> Target<'a, F> {
    /// All entries of all samples count alike, and nothing else does.
    pub fn new(values: &'a [F]) -> Self {
        Self { values, entry_weights: None, sample_weights: None, penalty: None }
    }
}

/// A further term of the loss, a sum over samples.
pub trait Penalty<F>: Debug + Sync {
    /// Adds the gradient of the term with respect to the output for one sample.
    ///
    /// # Shapes
    /// `output`, `gradient [P]`.
    fn add(&self, sample: usize, output: &[F], gradient: &mut [F]);
}

/// Rows of activations that one pass aims at, or up to half as many more: so many that packing
/// the weights for it takes a few hundredths of its time, and few enough that memory does not
/// grow with the batch.
const ROWS: usize = 1024;

/// Runs passes of one [`Transformer`], with all memory allocated in advance.
///
/// The batch is split over the threads, and every thread's share into passes of
/// a few samples, so memory does not grow with the batch.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use lopt::gpt::{Executor, Inputs, ModelConfig, Target, Transformer};
/// use lopt::layout::LayoutBuilder;
///
/// let mut builder = LayoutBuilder::new();
/// builder.scope("hidden", |b| b.linear(3, 4, true));
/// builder.scope("output", |b| b.linear(4, 2, true));
/// let config = ModelConfig { width: 16, blocks: 1, heads: 2, ..ModelConfig::default() };
/// let model = Arc::new(Transformer::new(config, &builder.finish()?)?);
/// let parameters: Vec<f32> = model.initialize(0);
///
/// let (noised, start) = (vec![0.5; 26], vec![0.25; 26]);
/// let inputs = Inputs {
///     noised: &noised,
///     start: &start,
///     timestep: &[999.0],
///     delta: &[-1.0],
///     target: &[0.5],
///     current: &[1.5],
/// };
/// let mut executor = Executor::for_training(model.clone(), 1, 1)?;
/// let mut output = vec![0.0; 26];
/// executor.predict(&parameters, &inputs, &mut output)?;
/// assert_eq!(output, start, "a fresh model changes nothing");
///
/// let mut gradient = vec![0.0; model.num_parameters()];
/// let target = Target::new(&noised);
/// let loss = executor.loss_and_gradient(&parameters, &inputs, &target, &mut gradient)?;
/// assert_eq!(loss, 0.0625);
/// # Ok::<(), lopt::Error>(())
/// ```
#[derive(Debug)]
pub struct Executor<F> {
    model: Arc<Transformer>,
    arena: Arena,
    threads: Threads,
    workers: Vec<Worker<F>>,
    capacity: usize,
    /// Positions of the weights of linear layers, whose gradients need no zeros to begin with.
    weights: Vec<Range<usize>>,
    packed: Option<PackedParameters<F>>,
}

/// What one thread writes to.
#[derive(Debug)]
struct Worker<F> {
    arena: AlignedBuffer<F>,
    /// For matrix products and attention.
    scratch: AlignedBuffer<F>,
    /// Empty for the first worker, which writes to the caller's, and at inference.
    gradient: Vec<F>,
    loss: f64,
}

impl<F: Float> Worker<F> {
    /// Arena and scratch memory.
    fn memory(&mut self) -> [&mut [F]; 2] {
        [self.arena.values_mut(), self.scratch.values_mut()]
    }
}

impl<F: Float> Executor<F> {
    /// An executor that can only predict, for up to `batch` samples on `threads`
    /// threads (0: as many as the machine has cores).
    ///
    /// # Errors
    /// If the threads cannot be started, memory does not suffice, or `batch` is 0.
    pub fn for_inference(
        model: Arc<Transformer>,
        batch: usize,
        threads: usize,
    ) -> Result<Self, EngineError> {
        Self::new(model, batch, threads, false)
    }

    /// An executor that can also form gradients.
    ///
    /// # Errors
    /// As [`for_inference`](Self::for_inference).
    pub fn for_training(
        model: Arc<Transformer>,
        batch: usize,
        threads: usize,
    ) -> Result<Self, EngineError> {
        Self::new(model, batch, threads, true)
    }

    fn new(
        model: Arc<Transformer>,
        batch: usize,
        threads: usize,
        training: bool,
    ) -> Result<Self, EngineError> {
        if batch == 0 {
            return Err(EngineError::Batch { found: 0, capacity: 0 });
        }
        let threads = Threads::new(threads)?;
        let count = threads.count().min(batch);
        let share = batch.div_ceil(count);
        let rows = share.saturating_mul(model.num_tokens());
        let passes = rows.saturating_add(ROWS / 2) / ROWS;
        let samples = share.div_ceil(passes.max(1));
        let arena = Arena::new(&model, samples, training);
        let worker = |i| {
            let gradient = match training && i > 0 {
                true => zeros(model.num_parameters())?,
                false => Vec::new(),
            };
            let scratch = AlignedBuffer::new(scratch_len(&arena.attention))?;
            Ok(Worker { arena: AlignedBuffer::new(arena.len)?, scratch, gradient, loss: 0.0 })
        };
        let workers = (0..count).map(worker).collect::<Result<_, EngineError>>()?;
        let weights = model.decayed();
        Ok(Self { model, arena, threads, workers, capacity: batch, weights, packed: None })
    }

    /// The network that is run.
    pub fn model(&self) -> &Arc<Transformer> {
        &self.model
    }

    /// The threads that run it.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// Most samples that each thread takes through the network at once: memory grows with
    /// them, not with the batch.
    pub fn samples_per_pass(&self) -> usize {
        self.arena.samples
    }

    /// Output of the network: decoded tokens plus starting parameters.
    ///
    /// # Shapes
    /// `parameters`: the model's; `output [N, P]`.
    ///
    /// # Errors
    /// If a buffer has the wrong length, or the batch is too large.
    pub fn predict(
        &mut self,
        parameters: &[F],
        inputs: &Inputs<'_, F>,
        output: &mut [F],
    ) -> Result<(), EngineError> {
        EngineError::check("parameters", parameters.len(), self.model.num_parameters())?;
        self.forward((parameters, None), inputs, output)
    }

    /// Keeps a copy of the parameters, with weights in the order in which matrix products read
    /// them, for [`predict_packed`](Self::predict_packed).
    ///
    /// # Errors
    /// If the buffer has the wrong length, or memory does not suffice.
    pub fn pack(&mut self, parameters: &[F]) -> Result<(), EngineError> {
        EngineError::check("parameters", parameters.len(), self.model.num_parameters())?;
        self.packed = Some(PackedParameters::new(parameters, self.model.linear_layers())?);
        Ok(())
    }

    /// As [`predict`](Self::predict), with the parameters that were [packed](Self::pack): much
    /// faster for a sample or a few, which would not make up for copying the weights.
    ///
    /// # Errors
    /// If no parameters were packed, and as [`predict`](Self::predict).
    pub fn predict_packed(
        &mut self,
        inputs: &Inputs<'_, F>,
        output: &mut [F],
    ) -> Result<(), EngineError> {
        let packed = self.packed.take().ok_or(EngineError::NotPacked)?;
        let (parameters, panels) = packed.parts();
        let done = self.forward((parameters, Some(panels)), inputs, output);
        self.packed = Some(packed);
        done
    }

    fn forward(
        &mut self,
        (parameters, panels): (&[F], Option<&Panels>),
        inputs: &Inputs<'_, F>,
        output: &mut [F],
    ) -> Result<(), EngineError> {
        let batch = inputs.check(&self.model, self.capacity)?;
        let size = self.model.layout().num_parameters();
        EngineError::check("output", output.len(), batch * size)?;
        let job = Job {
            model: &self.model,
            arena: &self.arena,
            parameters,
            panels,
            inputs,
            batch,
            workers: self.workers.len(),
        };
        let workers = &mut self.workers;
        self.threads.install(|| {
            job.fork(0, workers, output, size, None, &|index, worker, rows, _| {
                let first = job.share(index).start;
                job.run(index, worker.memory(), &mut [], |cpu, samples| {
                    let values = &cpu.arena[job.arena.output.range(samples.len())];
                    rows[(samples.start - first) * size..][..values.len()].copy_from_slice(values);
                });
            });
        });
        Ok(())
    }

    /// Mean over samples and entries of the weighted squared error. Its gradient
    /// with respect to the parameters, with that of the penalty if there is one,
    /// replaces `gradient`.
    ///
    /// # Shapes
    /// `parameters`, `gradient`: the model's.
    ///
    /// # Errors
    /// If a buffer has the wrong length, the batch is too large, or the executor
    /// was built for inference.
    pub fn loss_and_gradient(
        &mut self,
        parameters: &[F],
        inputs: &Inputs<'_, F>,
        target: &Target<'_, F>,
        gradient: &mut [F],
    ) -> Result<f64, EngineError> {
        let batch = self.check(parameters, inputs)?;
        let size = self.model.layout().num_parameters();
        EngineError::check("target values", target.values.len(), batch * size)?;
        if let Some(weights) = target.entry_weights {
            EngineError::check("entry weights", weights.len(), size)?;
        }
        if let Some(weights) = target.sample_weights {
            EngineError::check("sample weights", weights.len(), batch)?;
        }
        let scale = 1.0 / (batch * size) as f64;
        let sum = self.differentiate(
            (parameters, inputs, batch),
            gradient,
            &mut [],
            |arena, training, cpu, samples| {
                let rows = samples.len();
                let values = &target.values[samples.start * size..samples.end * size];
                cpu.load(training.target, values);
                let entry = target.entry_weights.map(|weights| {
                    cpu.load(training.entry_weights, weights);
                    training.entry_weights
                });
                let sample = target.sample_weights.map(|weights| {
                    cpu.load(training.sample_weights, &weights[samples.clone()]);
                    training.sample_weights
                });
                let outputs = target.penalty.map(|_| cpu.arena[arena.output.range(rows)].to_vec());
                let sum =
                    cpu.squared_error(rows, arena.output, training.target, entry, sample, scale);
                if let (Some(penalty), Some(outputs)) = (target.penalty, outputs) {
                    let gradients = &mut cpu.arena[arena.output.range(rows)];
                    let rows = outputs.chunks_exact(size).zip(gradients.chunks_exact_mut(size));
                    for (sample, (output, gradient)) in samples.zip(rows) {
                        penalty.add(sample, output, gradient);
                    }
                }
                sum
            },
        )?;
        Ok(sum * scale)
    }

    /// Gradients of `sum(cotangent * output)` with respect to the parameters and
    /// the noised input, which replace `gradient` and `noised_gradient`.
    ///
    /// # Shapes
    /// `cotangent`, `noised_gradient [N, P]`; `parameters`, `gradient`: the model's.
    ///
    /// # Errors
    /// As [`loss_and_gradient`](Self::loss_and_gradient).
    pub fn pull_back(
        &mut self,
        parameters: &[F],
        inputs: &Inputs<'_, F>,
        cotangent: &[F],
        gradient: &mut [F],
        noised_gradient: &mut [F],
    ) -> Result<(), EngineError> {
        let batch = self.check(parameters, inputs)?;
        let size = self.model.layout().num_parameters();
        EngineError::check("cotangent", cotangent.len(), batch * size)?;
        EngineError::check("noised gradient", noised_gradient.len(), batch * size)?;
        self.differentiate(
            (parameters, inputs, batch),
            gradient,
            noised_gradient,
            |arena, _, cpu, samples| {
                cpu.load(arena.output, &cotangent[samples.start * size..samples.end * size]);
                0.0
            },
        )?;
        Ok(())
    }

    /// The tokens of one sample on their way through the network: before the
    /// first block, after each block, and after the last LayerNorm.
    ///
    /// # Shapes
    /// Each `[T, D]`, but the last two hold output tokens only, which are the
    /// first ones.
    ///
    /// # Errors
    /// If a buffer has the wrong length, there is more than one sample, or the
    /// executor was built for inference, where blocks overwrite the tokens.
    pub fn stages(
        &mut self,
        parameters: &[F],
        inputs: &Inputs<'_, F>,
    ) -> Result<Vec<Vec<F>>, EngineError> {
        if self.arena.training.is_none() {
            return Err(EngineError::InferenceOnly);
        }
        let batch = self.check(parameters, inputs)?;
        if batch > 1 {
            return Err(EngineError::Batch { found: batch, capacity: 1 });
        }
        let (model, arena) = (&self.model, &self.arena);
        let job = Job { model, arena, parameters, panels: None, inputs, batch, workers: 1 };
        let mut stages = Vec::new();
        job.run(0, self.workers[0].memory(), &mut [], |cpu, _| {
            let all = job.arena.stages().count();
            for (i, slot) in job.arena.stages().enumerate() {
                let rows =
                    if i + 2 < all { job.model.num_tokens() } else { job.model.num_outputs() };
                stages.push(cpu.arena[slot.range(rows)].to_vec());
            }
        });
        Ok(stages)
    }

    /// Runs forward and backward passes. `seed` turns the output of a pass into
    /// its gradient, and returns the loss. `rows` takes the gradients of the
    /// noised input, if it is not empty.
    fn differentiate(
        &mut self,
        (parameters, inputs, batch): (&[F], &Inputs<'_, F>, usize),
        gradient: &mut [F],
        rows: &mut [F],
        seed: impl Fn(&Arena, &Training, &mut Cpu<'_, F>, Range<usize>) -> f64 + Sync,
    ) -> Result<f64, EngineError> {
        let Some(training) = &self.arena.training else { return Err(EngineError::InferenceOnly) };
        EngineError::check("gradient", gradient.len(), self.model.num_parameters())?;
        let job = Job {
            model: &self.model,
            arena: &self.arena,
            parameters,
            panels: None,
            inputs,
            batch,
            workers: self.workers.len(),
        };
        let size = if rows.is_empty() { 0 } else { job.model.layout().num_parameters() };
        let (workers, all_weights) = (&mut self.workers, &self.weights);
        self.threads.install(|| {
            job.fork(
                0,
                workers,
                rows,
                size,
                Some(&mut *gradient),
                &|index, worker, rows, caller| {
                    let first = job.share(index).start;
                    let (memory, own) = (
                        [worker.arena.values_mut(), worker.scratch.values_mut()],
                        &mut worker.gradient,
                    );
                    let gradient = caller.unwrap_or(own);
                    let mut end = 0;
                    let idle = job.share(index).is_empty();
                    for weights in all_weights.iter().filter(|_| !idle) {
                        gradient[end..weights.start].fill(F::zero());
                        end = weights.end;
                    }
                    gradient[end..].fill(F::zero());
                    let mut loss = 0.0;
                    job.run(index, memory, gradient, |cpu, samples| {
                        let (from, count) = (samples.start - first, samples.len());
                        loss += seed(job.arena, training, cpu, samples.clone());
                        job.model.backward(job.arena, training, count, size > 0, cpu);
                        let rows = rows.get_mut(from * size..).unwrap_or_default();
                        let gradients = &cpu.arena[training.input.range(count)];
                        let gradients = gradients.chunks_exact(training.input.width);
                        let samples = rows.chunks_exact_mut(size.max(1)).zip(samples);
                        for ((row, sample), gradient) in samples.zip(gradients) {
                            let scale = job.signal_scale(sample);
                            row.iter_mut().zip(gradient).for_each(|(x, &g)| *x = g * scale);
                        }
                    });
                    worker.loss = loss;
                },
            );
            let others = &workers[1..];
            if !others.is_empty() {
                gradient.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, sum)| {
                    for worker in others {
                        let part = &worker.gradient[chunk * CHUNK..][..sum.len()];
                        sum.iter_mut().zip(part).for_each(|(sum, &g)| *sum += g);
                    }
                });
            }
        });
        Ok(self.workers.iter().map(|worker| worker.loss).sum())
    }

    /// Checks lengths; the number of samples.
    fn check(&self, parameters: &[F], inputs: &Inputs<'_, F>) -> Result<usize, EngineError> {
        EngineError::check("parameters", parameters.len(), self.model.num_parameters())?;
        inputs.check(&self.model, self.capacity)
    }
}

impl<F> Inputs<'_, F> {
    /// Checks lengths; the number of samples, of at most `capacity`.
    pub(super) fn check(&self, model: &Transformer, capacity: usize) -> Result<usize, EngineError> {
        let batch = self.timestep.len();
        if batch == 0 || batch > capacity {
            return Err(EngineError::Batch { found: batch, capacity });
        }
        let values = batch * model.layout().num_parameters();
        EngineError::check("noised", self.noised.len(), values)?;
        EngineError::check("start", self.start.len(), values)?;
        EngineError::check("delta", self.delta.len(), batch)?;
        if model.config().absolute_conditioning {
            EngineError::check("target", self.target.len(), batch)?;
            EngineError::check("current", self.current.len(), batch)?;
        }
        Ok(batch)
    }
}

/// Parameters whose gradients one thread adds up at once.
const CHUNK: usize = 1 << 14;

/// One batch, to be shared by the workers.
struct Job<'a, F> {
    model: &'a Transformer,
    arena: &'a Arena,
    parameters: &'a [F],
    panels: Option<&'a Panels>,
    inputs: &'a Inputs<'a, F>,
    batch: usize,
    workers: usize,
}

/// What a worker does with its memory, its rows of the caller's buffer, and the
/// caller's gradient (the first worker only).
type Work<'a, F> = dyn Fn(usize, &mut Worker<F>, &mut [F], Option<&mut [F]>) + Sync + Send + 'a;

impl<F: Float> Job<'_, F> {
    /// Samples of a worker.
    fn share(&self, worker: usize) -> Range<usize> {
        self.batch * worker / self.workers..self.batch * (worker + 1) / self.workers
    }

    /// Does `work` for every worker, in parallel and without allocating; each
    /// gets its share of `rows`, which are `size` long.
    fn fork(
        &self,
        first: usize,
        workers: &mut [Worker<F>],
        rows: &mut [F],
        size: usize,
        gradient: Option<&mut [F]>,
        work: &Work<'_, F>,
    ) {
        if let [worker] = workers {
            return work(first, worker, rows, gradient);
        }
        let half = workers.len() / 2;
        let split = (self.share(first + half).start - self.share(first).start) * size;
        let (left, right) = workers.split_at_mut(half);
        let (left_rows, right_rows) = rows.split_at_mut(split);
        rayon::join(
            || self.fork(first, left, left_rows, size, gradient, work),
            || self.fork(first + half, right, right_rows, size, None, work),
        );
    }

    /// Runs forward passes over the samples of a worker, and `finish` after each.
    fn run(
        &self,
        worker: usize,
        [arena, scratch]: [&mut [F]; 2],
        gradient: &mut [F],
        mut finish: impl FnMut(&mut Cpu<'_, F>, Range<usize>),
    ) {
        let share = self.share(worker);
        let passes = share.len().div_ceil(self.arena.samples);
        let (parameters, panels) = (self.parameters, self.panels);
        let mut cpu = Cpu { parameters, panels, gradient, arena, scratch, first: true };
        for pass in 0..passes {
            let start = share.start + share.len() * pass / passes;
            let end = share.start + share.len() * (pass + 1) / passes;
            self.load(start..end, cpu.arena);
            self.model.forward(self.arena, end - start, &mut cpu);
            finish(&mut cpu, start..end);
            cpu.first = false;
        }
    }

    /// What the noised parameters of a sample are multiplied by.
    fn signal_scale(&self, sample: usize) -> F {
        F::from_f64(self.model.signal_scale(self.inputs.timestep[sample].as_f64()))
    }

    /// Writes the input rows of samples.
    fn load(&self, samples: Range<usize>, arena: &mut [F]) {
        let Inputs { noised, start, timestep, delta, target, current } = *self.inputs;
        let size = self.model.layout().num_parameters();
        let absolute = self.model.config().absolute_conditioning;
        let frequencies = self.model.frequencies();
        let timestep_scale = F::from_f64(self.model.config().timestep_scale);
        let metric_scale = F::from_f64(self.model.config().metric_scale);
        let rows = &mut arena[self.arena.input.range(samples.len())];
        for (row, i) in rows.chunks_exact_mut(self.arena.input.width).zip(samples) {
            let values = i * size..(i + 1) * size;
            let scale = self.signal_scale(i);
            row.iter_mut().zip(&noised[values.clone()]).for_each(|(x, &n)| *x = n * scale);
            row[size..2 * size].copy_from_slice(&start[values]);
            let relative = [timestep[i] * timestep_scale, delta[i] * metric_scale];
            let scalars = relative.into_iter().chain(
                match absolute {
                    true => [target[i], current[i]].map(|metric| Some(metric * metric_scale)),
                    false => [None; 2],
                }
                .into_iter()
                .flatten(),
            );
            let embeddings = row[2 * size..].chunks_exact_mut(2 * frequencies.len() + 1);
            for (scalar, embedding) in scalars.zip(embeddings) {
                embed(frequencies, scalar, embedding);
            }
        }
    }
}
