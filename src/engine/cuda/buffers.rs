//! A device's buffers, and how kernels are run on them.

use std::collections::HashMap;

use super::backend::{Address, Argument, Backend};
use crate::engine::{DeviceError, Math, Slot};

/// A list of arguments of a kernel.
macro_rules! arguments {
    ($($value:expr),* $(,)?) => { &[$(crate::engine::cuda::Argument::from($value)),*] };
}
pub(crate) use arguments;

/// Most pieces that a sum over rows is cut into.
const PIECES: usize = 128;

/// Memory that grows.
#[derive(Clone, Copy, Debug, Default)]
struct Scratch {
    at: Address,
    bytes: usize,
}

/// Parameters, gradient and activations on a device, and what computes on them.
pub(crate) struct Cuda<B> {
    pub backend: B,
    /// Whether products are computed by the engine's own kernel: only to compare that, for
    /// otherwise it computes what cuBLASLt cannot.
    pub own_products: bool,
    pub math: Math,
    /// `[P]`.
    pub parameters: Address,
    /// The parameters in bf16; 0 where nothing is.
    pub narrow_parameters: Address,
    /// 0 at inference.
    pub gradient: Address,
    pub arena: Address,
    /// 0 where nothing is narrow.
    pub narrow_arena: Address,
    /// A matrix in the other precision; scores' gradients.
    matrix: Scratch,
    /// Sums of pieces.
    partial: Scratch,
    /// Tables on the device, by where they lie on the host: a model's stay where they are.
    tables: HashMap<(usize, usize, bool), Address>,
    /// The first thing that went wrong; nothing is done after it.
    failure: Option<DeviceError>,
}

/// Lengths of a device's buffers, in values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    pub parameters: usize,
    pub arena: usize,
    pub narrow_arena: usize,
    pub training: bool,
}

/// Whether there is memory for all of these, before any is taken.
fn suffices<B: Backend>(backend: &mut B, sizes: &[usize]) -> Result<(), DeviceError> {
    let needed = sizes.iter().fold(0usize, |sum, size| sum.saturating_add(*size));
    let free = backend.free_memory()?;
    match needed > free {
        true => Err(DeviceError::Memory { needed: needed >> 20, free: free >> 20 }),
        false => Ok(()),
    }
}

impl<B: Backend> Cuda<B> {
    /// Allocates all buffers.
    pub fn new(mut backend: B, math: Math, lengths: Lengths) -> Result<Self, DeviceError> {
        let Lengths { parameters, arena, narrow_arena, training } = lengths;
        let narrow = math == Math::Bf16;
        let bytes = |values: usize, size: usize| values.saturating_mul(size);
        let sizes = [
            bytes(parameters, 4),
            bytes(if narrow { parameters } else { 0 }, 2),
            bytes(if training { parameters } else { 0 }, 4),
            bytes(arena, 4),
            bytes(narrow_arena, 2),
        ];
        suffices(&mut backend, &sizes)?;
        let mut places = [0; 5];
        for (place, size) in places.iter_mut().zip(sizes) {
            if size > 0 {
                *place = backend.allocate(size)?;
            }
        }
        let [parameters, narrow_parameters, gradient, arena, narrow_arena] = places;
        Ok(Self {
            backend,
            own_products: false,
            math,
            parameters,
            narrow_parameters,
            gradient,
            arena,
            narrow_arena,
            matrix: Scratch::default(),
            partial: Scratch::default(),
            tables: HashMap::new(),
            failure: None,
        })
    }

    /// Makes the arenas this long; what was in them is lost. They are gone if that fails.
    pub fn set_arenas(&mut self, arena: usize, narrow_arena: usize) -> Result<(), DeviceError> {
        for own in [&mut self.arena, &mut self.narrow_arena] {
            if *own != 0 {
                self.backend.free(std::mem::take(own))?;
            }
        }
        let sizes = [arena.saturating_mul(4), narrow_arena.saturating_mul(2)];
        suffices(&mut self.backend, &sizes)?;
        for (own, size) in [&mut self.arena, &mut self.narrow_arena].into_iter().zip(sizes) {
            if size > 0 {
                *own = self.backend.allocate(size)?;
            }
        }
        Ok(())
    }

    /// What went wrong since this was last asked.
    pub fn check(&mut self) -> Result<(), DeviceError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Does something, unless something has gone wrong before.
    pub fn attempt<T: Default>(
        &mut self,
        work: impl FnOnce(&mut B) -> Result<T, DeviceError>,
    ) -> T {
        if self.failure.is_some() {
            return T::default();
        }
        work(&mut self.backend).unwrap_or_else(|problem| {
            self.failure = Some(problem);
            T::default()
        })
    }

    /// Where the first value of a slot lies.
    pub fn at(&self, slot: Slot) -> Address {
        match slot.narrow {
            true => self.narrow_arena + 2 * slot.offset as u64,
            false => self.arena + 4 * slot.offset as u64,
        }
    }

    /// Where a parameter lies.
    pub(super) fn parameter(&self, offset: usize) -> Address {
        self.parameters + 4 * offset as u64
    }

    /// Where a parameter lies in the precision of what it is used with.
    pub(super) fn parameter_like(&self, offset: usize, narrow: bool) -> Address {
        match narrow {
            true => self.narrow_parameters + 2 * offset as u64,
            false => self.parameter(offset),
        }
    }

    pub(super) fn gradient_of(&self, offset: usize) -> Address {
        self.gradient + 4 * offset as u64
    }

    /// Runs a kernel with blocks for each row, and threads along its columns.
    pub fn by_row(
        &mut self,
        kernel: &'static str,
        rows: usize,
        width: usize,
        arguments: &[Argument],
    ) {
        let most = if width > 1 << 20 { 1024 } else { 256 };
        let threads = width.next_multiple_of(32).min(most);
        if rows > 0 && width > 0 {
            let blocks = [rows, width.div_ceil(threads)];
            self.attempt(|backend| backend.launch(kernel, blocks, threads, arguments));
        }
    }

    /// Runs a kernel with a thread for each value.
    pub fn by_value(&mut self, kernel: &'static str, count: usize, arguments: &[Argument]) {
        if count > 0 {
            let blocks = [count.div_ceil(256), 1];
            self.attempt(|backend| backend.launch(kernel, blocks, 256, arguments));
        }
    }

    /// Runs a kernel with a warp for each row.
    pub(super) fn by_warp(&mut self, kernel: &'static str, rows: usize, arguments: &[Argument]) {
        if rows > 0 {
            let blocks = [rows.div_ceil(4), 1];
            self.attempt(|backend| backend.launch(kernel, blocks, 128, arguments));
        }
    }

    /// Scratch memory of at least so many bytes; what was in it is lost when it grows.
    fn grow(&mut self, mut scratch: Scratch, bytes: usize) -> Scratch {
        if scratch.bytes < bytes {
            scratch.at = self.attempt(|backend| {
                if scratch.at != 0 {
                    backend.free(scratch.at)?;
                }
                backend.allocate(bytes)
            });
            scratch.bytes = if scratch.at == 0 { 0 } else { bytes };
        }
        scratch
    }

    pub(super) fn matrix(&mut self, bytes: usize) -> Address {
        self.matrix = self.grow(self.matrix, bytes);
        self.matrix.at
    }

    /// Memory for sums of pieces, in values of `f32`.
    pub(super) fn partial(&mut self, values: usize) -> Address {
        self.partial = self.grow(self.partial, 4 * values);
        self.partial.at
    }

    /// A table on the device. `derived` tells one that was made of the host's from that.
    pub(super) fn table(
        &mut self,
        table: &[u32],
        derived: bool,
        make: impl FnOnce() -> Vec<u32>,
    ) -> Address {
        let key = (table.as_ptr() as usize, table.len(), derived);
        if let Some(&at) = self.tables.get(&key) {
            return at;
        }
        let values = make();
        let at = self.attempt(|backend| {
            let at = backend.allocate(4 * values.len().max(1))?;
            backend.upload(at, bytemuck::cast_slice(&values))?;
            Ok(at)
        });
        self.tables.insert(key, at);
        at
    }

    pub(super) fn own_table(&mut self, table: &[u32]) -> Address {
        self.table(table, false, || table.to_vec())
    }

    /// Pieces that rows are summed in, and the rows of each.
    pub(super) fn pieces(rows: usize) -> (usize, usize) {
        let piece = rows.div_ceil(PIECES).max(32);
        (rows.div_ceil(piece), piece)
    }
}
