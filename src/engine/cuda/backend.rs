//! What a device does for the engine: memory, kernels, products of matrices, recordings.
//!
//! There are two of them: [`Gpu`](super::driver::Gpu), and in tests one that runs the same
//! kernels on the CPU. Everything above this trait is the same for both.

use crate::engine::DeviceError;

/// Where something lies in a device's memory; 0 is nowhere.
pub(crate) type Address = u64;

/// An argument of a kernel, as its eight first bytes in memory.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Argument(u64);

impl From<Address> for Argument {
    fn from(value: Address) -> Self {
        Self(value)
    }
}

impl From<i32> for Argument {
    fn from(value: i32) -> Self {
        Self(u64::from(value as u32).to_le())
    }
}

impl From<i64> for Argument {
    fn from(value: i64) -> Self {
        Self(value as u64)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self(u64::from(value.to_bits()).to_le())
    }
}

impl From<f64> for Argument {
    fn from(value: f64) -> Self {
        Self(value.to_bits())
    }
}

/// A factor of a product: a matrix row by row, or what it is when rows become columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factor {
    pub at: Address,
    /// Whether the matrix in memory is the transpose of the factor.
    pub transposed: bool,
}

/// `out = a b + add + bias`, all row by row: `a [m, k]`, `b [k, n]`, `out`, `add [m, n]`,
/// `bias [n]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Factor,
    pub b: Factor,
    /// Whether the factors are bf16 instead of f32.
    pub narrow: bool,
    pub out: Address,
    /// Whether `out`, `add` and `bias` are bf16 instead of f32.
    pub out_narrow: bool,
    /// What the product is added to; may be `out`.
    pub add: Option<Address>,
    pub bias: Option<Address>,
    /// Whether factors in f32 may be rounded to TF32.
    pub tf32: bool,
}

impl Product {
    /// The kernel that computes it, its blocks, and its arguments; of 256 threads.
    pub fn kernel(&self) -> (&'static str, [usize; 2], [Argument; 12]) {
        let kernel = match (self.narrow, self.out_narrow) {
            (false, _) => "product_ff",
            (true, false) => "product_hf",
            (true, true) => "product_hh",
        };
        let strides = |factor: Factor, rows: usize, columns: usize| match factor.transposed {
            true => [1i64, rows as i64],
            false => [columns as i64, 1],
        };
        let [a_row, a_column] = strides(self.a, self.m, self.k);
        let [b_row, b_column] = strides(self.b, self.k, self.n);
        let arguments = [
            self.out.into(),
            self.a.at.into(),
            a_row.into(),
            a_column.into(),
            self.b.at.into(),
            b_row.into(),
            b_column.into(),
            self.add.unwrap_or(0).into(),
            self.bias.unwrap_or(0).into(),
            (self.m as i64).into(),
            (self.n as i64).into(),
            (self.k as i64).into(),
        ];
        (kernel, [self.m.div_ceil(32), self.n.div_ceil(32)], arguments)
    }
}

/// A device. Work is done in the order in which it was given, but copies that `stage` began.
pub(crate) trait Backend {
    /// Work that was recorded, to be done again.
    type Recording;

    /// Memory, all zeros.
    fn allocate(&mut self, bytes: usize) -> Result<Address, DeviceError>;
    /// Gives memory back, once all work before has ended.
    fn free(&mut self, at: Address) -> Result<(), DeviceError>;
    /// Bytes that can still be allocated.
    fn free_memory(&mut self) -> Result<usize, DeviceError>;

    /// Copies to the device.
    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError>;
    /// Copies from the device, once all work before has ended.
    fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError>;
    /// Zeroes memory.
    fn zero(&mut self, at: Address, bytes: usize) -> Result<(), DeviceError>;

    /// Runs a kernel with so many blocks along x and y, of so many threads each.
    fn launch(
        &mut self,
        kernel: &'static str,
        blocks: [usize; 2],
        threads: usize,
        arguments: &[Argument],
    ) -> Result<(), DeviceError>;
    /// Multiplies matrices.
    fn multiply(&mut self, product: &Product) -> Result<(), DeviceError>;

    /// Begins to copy parts to the device, one after the other as [`staged_len`] says, while
    /// earlier work goes on. There are two places, 0 and 1. Waits until what was staged there
    /// before has been [released](Self::release).
    fn stage(&mut self, place: usize, parts: &[&[u8]]) -> Result<Address, DeviceError>;
    /// Work from here on waits until the parts have arrived.
    fn await_staged(&mut self, place: usize) -> Result<(), DeviceError>;
    /// Work until here is all that reads the parts.
    fn release(&mut self, place: usize) -> Result<(), DeviceError>;

    /// Begins to copy a few bytes from the device once all work before has ended, without
    /// waiting for that. There are two places.
    fn post(&mut self, place: usize, from: Address, bytes: usize) -> Result<(), DeviceError>;
    /// What was posted, once it has arrived.
    fn collect(&mut self, place: usize, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// From here on work is recorded instead of being done.
    fn begin_recording(&mut self) -> Result<(), DeviceError>;
    /// What was recorded.
    fn end_recording(&mut self) -> Result<Self::Recording, DeviceError>;
    /// Does what was recorded.
    fn replay(&mut self, recording: &Self::Recording) -> Result<(), DeviceError>;
}

/// Bytes that a part of this length takes up, so that the next is aligned.
pub(crate) fn staged_len(bytes: usize) -> usize {
    bytes.next_multiple_of(256)
}

/// Where parts of these lengths begin that lie one after the other from here on.
pub(crate) fn parts<const N: usize>(mut at: Address, bytes: [usize; N]) -> [Address; N] {
    bytes.map(|bytes| {
        let own = at;
        at += staged_len(bytes) as u64;
        own
    })
}
