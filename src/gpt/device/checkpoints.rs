//! Batches that a device draws from checkpoints in its own memory: what is copied there for a
//! step are numbers of checkpoints, moves of units and timesteps.

use super::{DeviceTraining, Inputs, Staged, Target};
use crate::checkpoints::{PairSampler, Precision};
use crate::engine::cuda::{arguments, Address, Backend};
use crate::engine::EngineError;
use crate::gpt::Prediction;

/// Values that a block of the kernel `draw_batch` draws, and its threads.
const BLOCK: [usize; 2] = [16 * 128, 128];
/// Memory that is left to the driver and to other programs.
const MARGIN: usize = 256 << 20;

/// The checkpoints of a data set on a device, and room for a batch of them.
pub(in crate::gpt) struct Checkpoints {
    kernel: &'static str,
    values: Address,
    /// See [`UnitPlace`](crate::symmetry::UnitPlace), for so many axes and units.
    places: Address,
    axes: usize,
    units: usize,
    /// What parameters are multiplied by.
    scale: f32,
    /// The key of the noise.
    key: Address,
    /// Earlier checkpoints, target and noised checkpoints, `[N, P]` each.
    batch: [Address; 3],
}

/// What decides a batch of a device's checkpoints.
pub(in crate::gpt) struct Draw<'a> {
    /// Numbers of the earlier and the later checkpoint, `[N]`.
    pub pairs: Vec<[i64; 2]>,
    /// How units move, `[N, units]`.
    pub moves: Vec<i32>,
    /// Weights of the later checkpoint and the noise in what is noised, `[N]`.
    pub weights: Vec<[f32; 2]>,
    /// The stream of the noise.
    pub stream: u64,
    /// What samples are conditioned on; no parameters are read.
    pub inputs: Inputs<'a, f32>,
}

/// What checkpoints take, and what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gpt) struct Needed {
    pub bytes: usize,
    pub free: usize,
}

impl<B: Backend> DeviceTraining<B> {
    /// Copies the checkpoints that pairs are drawn from to the device, if they fit beside all
    /// that a training needs; none otherwise.
    ///
    /// # Errors
    /// If the memory does not suffice for a training, or the device fails.
    pub fn hold(
        &mut self,
        pairs: &PairSampler,
        key: [u8; 32],
    ) -> Result<(Option<Checkpoints>, Needed), EngineError> {
        self.take_all_memory()?;
        let (dataset, symmetry) = (pairs.dataset(), pairs.symmetry());
        let (size, capacity) = (dataset.layout().num_parameters(), self.model.capacity);
        let (kernel, width) = match dataset.parameters().precision() {
            Precision::F32 => ("draw_batch_f32", 4),
            Precision::F16 => ("draw_batch_f16", 2),
        };
        let end = pairs.runs().last().map_or(0, |run| run.checkpoints.end);
        let values = &dataset.parameters().bytes()[..end * size * width];
        let places = match pairs.config().permute {
            true => bytemuck::cast_slice(symmetry.unit_places()),
            false => &[][..],
        };
        let rows = 4 * capacity * size;
        let backend = &mut self.model.ops.backend;
        let bytes = values.len() + 3 * rows + places.len();
        let needed = Needed { bytes, free: backend.free_memory()?.saturating_sub(MARGIN) };
        if bytes > needed.free {
            return Ok((None, needed));
        }
        let batch = [backend.allocate(rows)?, backend.allocate(rows)?, backend.allocate(rows)?];
        let mut hold = |bytes: &[u8]| {
            let at = backend.allocate(bytes.len().max(1))?;
            backend.upload(at, bytes)?;
            Ok::<_, EngineError>(at)
        };
        let checkpoints = Checkpoints {
            kernel,
            values: hold(values)?,
            places: hold(places)?,
            axes: places.len() / (size * size_of::<crate::symmetry::UnitPlace>()),
            units: symmetry.num_units(),
            scale: pairs.config().scale as f32,
            key: hold(&key)?,
            batch,
        };
        Ok((Some(checkpoints), needed))
    }

    /// Whatever a step or a prediction allocates when it is the first, at both places that
    /// batches are staged in: gradients of a batch of zeros.
    fn take_all_memory(&mut self) -> Result<(), EngineError> {
        let samples = self.model.capacity;
        let values = vec![0f32; samples * self.model.model.layout().num_parameters()];
        let (scalars, target) = (vec![0f32; samples], Target::new(&values));
        let inputs = Inputs {
            noised: &values,
            start: &values,
            timestep: &scalars,
            delta: &scalars,
            target: &scalars,
            current: &scalars,
        };
        for place in [0, 1] {
            let batch = self.model.stage(place, &inputs, Some(&target))?;
            self.model.differentiate(&batch, &target)?;
        }
        Ok(())
    }

    /// Draws the batch of the next step, behind all work that was given.
    pub fn draw(&mut self, from: &Checkpoints, draw: &Draw<'_>) -> Result<(), EngineError> {
        let (samples, capacity) = (draw.pairs.len(), self.model.capacity);
        if samples == 0 || samples > capacity {
            return Err(EngineError::Batch { found: samples, capacity });
        }
        let moves = if from.axes == 0 { 0 } else { samples * from.units };
        EngineError::check("moves of units", draw.moves.len(), moves)?;
        EngineError::check("weights of noise", draw.weights.len(), samples)?;
        EngineError::check("timesteps", draw.inputs.timestep.len(), samples)?;
        self.place = 1 - self.place;
        let (model, place) = (&mut self.model, self.place);
        let (embedded, signals) = (model.embed(&draw.inputs), model.signals(&draw.inputs));
        let [pairs, moves, weights, embedded, signals] = model.stage_parts(
            place,
            [
                bytemuck::cast_slice(&draw.pairs),
                bytemuck::cast_slice(&draw.moves),
                bytemuck::cast_slice(&draw.weights),
                bytemuck::cast_slice(&embedded),
                bytemuck::cast_slice(&signals),
            ],
        )?;
        let [start, target, noised] = from.batch;
        let size = model.model.layout().num_parameters();
        let target_noise = model.model.config().prediction == Prediction::Noise;
        let arguments = arguments![
            start,
            target,
            noised,
            from.values,
            pairs,
            moves,
            from.places,
            from.units as i32,
            from.axes as i32,
            weights,
            from.scale,
            from.key,
            draw.stream,
            i32::from(target_noise),
            size as i64
        ];
        let (blocks, threads) = ([samples, size.div_ceil(BLOCK[0])], BLOCK[1]);
        model.ops.attempt(|backend| {
            backend.await_staged(place)?;
            backend.launch(from.kernel, blocks, threads, arguments)
        });
        let weights = [None; 2];
        self.next =
            Some(Staged { place, samples, noised, start, embedded, signals, target, weights });
        Ok(model.ops.check()?)
    }

    /// The batch that was drawn last: earlier checkpoints, target and noised checkpoints.
    pub fn drawn(
        &mut self,
        from: &Checkpoints,
        samples: usize,
    ) -> Result<[Vec<f32>; 3], EngineError> {
        let length = samples * self.model.model.layout().num_parameters();
        let mut batch = [(); 3].map(|()| vec![0f32; length]);
        let parts = from.batch.into_iter().zip(&mut batch);
        parts.into_iter().try_for_each(|(from, to)| self.model.read(from, to))?;
        Ok(batch)
    }
}
