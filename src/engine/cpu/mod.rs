//! The engine on the CPU.
//!
//! Every kernel is a plain loop over lanes, or over vectors, compiled for several
//! instruction sets and chosen at run time: `pulp` runs the same code as AVX-512,
//! AVX2, NEON or scalar code.
//!
//! Lane loops work on small arrays by value: all loads come before all stores,
//! so that the compiler need not know which slices overlap.

mod attention;
mod columns;
mod edges;
mod exponential;
mod fetch;
mod gelu;
mod layer_norm;
mod loss;
mod matmul;
mod optimizer;
mod packed;
mod tokens;

pub(crate) use attention::scratch_len;
pub(crate) use exponential::exp_negative;
pub(crate) use matmul::linear;
pub(crate) use optimizer::{AdamStep, SumOfSquares};
pub(crate) use packed::{PackedParameters, Panels};

use std::ops::Range;

use self::gelu::Finish;
use self::matmul::{Matrix, Product, Right, Start};
use super::{
    zeros, AttentionShape, EdgeShape, EdgeSlots, EngineError, Float, LayerNorm, Linear, Ops, Slot,
    Write,
};

/// Values that a lane loop treats at once: one AVX-512 register of `f32`.
pub(crate) const LANES: usize = 16;

/// `length` rounded up to whole lanes.
pub(crate) fn padded(length: usize) -> usize {
    length.next_multiple_of(LANES)
}

/// Zeros that begin on a cache line: vector loads that cross lines are slow.
#[derive(Debug)]
pub(crate) struct AlignedBuffer<F> {
    values: Vec<F>,
    start: usize,
    len: usize,
}

impl<F: Float> AlignedBuffer<F> {
    /// # Errors
    /// If there is not enough memory.
    pub fn new(len: usize) -> Result<Self, EngineError> {
        let values: Vec<F> = zeros(len.saturating_add(LANES))?;
        // The buffer never grows, so its values stay where they are.
        let start = values.as_ptr().align_offset(64).min(LANES);
        Ok(Self { values, start, len })
    }

    pub fn values(&self) -> &[F] {
        &self.values[self.start..][..self.len]
    }

    pub fn values_mut(&mut self) -> &mut [F] {
        &mut self.values[self.start..][..self.len]
    }
}

/// Adds up lanes in a fixed order.
#[inline(always)]
fn sum_lanes<F: Float>(lanes: [F; LANES]) -> F {
    let mut half = [F::zero(); LANES / 2];
    for i in 0..LANES / 2 {
        half[i] = lanes[i] + lanes[i + LANES / 2];
    }
    let mut quarter = [F::zero(); LANES / 4];
    for i in 0..LANES / 4 {
        quarter[i] = half[i] + half[i + LANES / 4];
    }
    (quarter[0] + quarter[2]) + (quarter[1] + quarter[3])
}

/// Runs a kernel for the instruction set of this machine.
fn simd<K: pulp::WithSimd>(kernel: K) -> K::Output {
    #[cfg(test)]
    if let Some(arch) = FORCED.get() {
        return arch.dispatch(kernel);
    }
    pulp::Arch::new().dispatch(kernel)
}

#[cfg(test)]
thread_local! {
    /// What this thread uses instead of what the machine has.
    static FORCED: std::cell::Cell<Option<pulp::Arch>> = const { std::cell::Cell::new(None) };
}

/// Runs `work` for every instruction set that this machine has, the one without vectors first.
#[cfg(test)]
pub(crate) fn on_each_instruction_set(mut work: impl FnMut(pulp::Arch)) {
    let mut sets = vec![pulp::Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        sets.extend(pulp::x86::V3::try_new().map(pulp::Arch::V3));
        sets.extend(pulp::x86::V4::try_new().map(pulp::Arch::V4));
    }
    #[cfg(not(target_arch = "x86_64"))]
    sets.push(pulp::Arch::new());
    for set in sets {
        FORCED.set(Some(set));
        work(set);
    }
    FORCED.set(None);
}

/// One thread's view of a pass: parameters shared by all, gradient and arena
/// its own.
pub(crate) struct Cpu<'a, F> {
    pub parameters: &'a [F],
    /// Where weights lie in the parameters, if these are packed.
    pub panels: Option<&'a Panels>,
    /// Empty at inference.
    pub gradient: &'a mut [F],
    pub arena: &'a mut [F],
    /// [`scratch_len`] values, for matrix products and attention.
    pub scratch: &'a mut [F],
    /// Whether this is the first of the passes whose gradients are added up. Weights of linear
    /// layers then hold nothing yet: each layer is used once in a pass.
    pub first: bool,
}

impl<F: Float> Cpu<'_, F> {
    /// Slots of the arena that do not overlap.
    fn slots<const N: usize>(&mut self, ranges: [Range<usize>; N]) -> [&mut [F]; N] {
        disjoint(self.arena, ranges)
    }

    /// Gradients of a linear layer: `dW = dyᵀ x` and `db`, the sums of the columns of `dy`.
    fn parameter_gradients(&mut self, rows: usize, layer: &Linear, x: Slot, dy: Slot) {
        let (inputs, outputs) = (layer.inputs, layer.outputs);
        let y_gradient = Matrix::new(&self.arena[dy.range(rows)], rows, outputs);
        simd(Product {
            out: &mut self.gradient[layer.weight..][..outputs * inputs],
            stride: inputs,
            start: if self.first { Start::Nothing } else { Start::Output },
            a: y_gradient.transposed(),
            b: Matrix::new(&self.arena[x.range(rows)], rows, inputs).into(),
            bias: None,
            finish: Finish::Nothing,
            scratch: &mut *self.scratch,
        });
        if let Some(bias) = layer.bias {
            let sum = &mut self.gradient[bias..bias + outputs];
            simd(columns::AddColumnSums { matrix: &self.arena[dy.range(rows)], sum });
        }
    }

    /// Copies values into a slot.
    pub fn load(&mut self, slot: Slot, values: &[F]) {
        self.arena[slot.offset..][..values.len()].copy_from_slice(values);
    }

    /// The factors of a form along edges.
    fn edges<'b>(
        &'b mut self,
        samples: usize,
        shape: &'b EdgeShape,
        slots: EdgeSlots,
    ) -> edges::Edges<'b, F> {
        let [edges, to, from, own] = disjoint(
            self.arena,
            [
                slots.edges.range(samples),
                slots.to.range(shape.to * samples),
                slots.from.range(shape.from * samples),
                slots.scratch.range(1),
            ],
        );
        let (own, scratch) = (&mut own[..shape.scratch_len()], &mut *self.scratch);
        edges::Edges { shape, samples, edges, to, from, own, scratch }
    }
}

/// `[outputs, inputs]`.
fn weight<'a, F: Float>(parameters: &'a [F], layer: &Linear) -> Matrix<'a, F> {
    let values = &parameters[layer.weight..][..layer.outputs * layer.inputs];
    Matrix::new(values, layer.outputs, layer.inputs)
}

/// `x Wᵀ + b` added to what it starts with, and finished.
fn affine<'a, F: Float>(
    parameters: &'a [F],
    panels: Option<&Panels>,
    layer: &Linear,
    x: &'a [F],
    (out, start, finish): (&'a mut [F], Start<'a, F>, Finish<'a, F>),
    scratch: &'a mut [F],
) {
    let &Linear { inputs, outputs, .. } = layer;
    let b = match panels {
        Some(panels) => Right::Panels(panels.of(parameters, layer)),
        None => weight(parameters, layer).transposed().into(),
    };
    let bias = layer.bias.map(|bias| &parameters[bias..bias + outputs]);
    let a = Matrix::new(x, x.len() / inputs, inputs);
    simd(Product { out, stride: outputs, start, a, b, bias, finish, scratch });
}

/// `dy W` added to what it starts with, and finished.
fn input_gradient<'a, F: Float>(
    parameters: &'a [F],
    layer: &Linear,
    dy: &'a [F],
    (out, start, finish): (&'a mut [F], Start<'a, F>, Finish<'a, F>),
    scratch: &'a mut [F],
) {
    let &Linear { inputs: stride, outputs, .. } = layer;
    let (a, b) = (Matrix::new(dy, dy.len() / outputs, outputs), weight(parameters, layer).into());
    simd(Product { out, stride, start, a, b, bias: None, finish, scratch });
}

/// Mutable parts of a buffer at ranges that are disjoint by construction.
fn disjoint<F, const N: usize>(buffer: &mut [F], ranges: [Range<usize>; N]) -> [&mut [F]; N] {
    match buffer.get_disjoint_mut(ranges) {
        Ok(parts) => parts,
        Err(problem) => unreachable!("spans of the plan: {problem}"),
    }
}

impl<F: Float> Ops for Cpu<'_, F> {
    fn gather(&mut self, table: &[u32], samples: usize, from: Slot, to: Slot) {
        let rows = table.len() / to.width * samples;
        let [source, target] = self.slots([from.range(samples), to.range(rows)]);
        tokens::gather(table, samples, source, from.width, target, to.width);
    }

    fn scatter_add(&mut self, table: &[u32], samples: usize, from: Slot, to: Slot) {
        let rows = table.len() / from.width * samples;
        let [source, target] = self.slots([from.range(rows), to.range(samples)]);
        tokens::scatter_add(table, samples, source, from.width, target, to.width);
    }

    fn copy_columns(&mut self, samples: usize, from: Slot, column: usize, to: Slot) {
        let [source, target] = self.slots([from.range(samples), to.range(samples)]);
        let rows = source.chunks_exact(from.width).zip(target.chunks_exact_mut(to.width));
        for (source, target) in rows {
            target.copy_from_slice(&source[column..column + to.width]);
        }
    }

    fn clear(&mut self, rows: usize, slot: Slot) {
        self.arena[slot.range(rows)].fill(F::zero());
    }

    fn linear(&mut self, rows: usize, layer: &Linear, x: Slot, y: Slot) {
        let [x, y] = disjoint(self.arena, [x.range(rows), y.range(rows)]);
        let out = (y, Start::Nothing, Finish::Nothing);
        affine(self.parameters, self.panels, layer, x, out, self.scratch);
    }

    fn linear_add(&mut self, rows: usize, layer: &Linear, x: Slot, residual: Slot, y: Slot) {
        let same = residual == y;
        let from = if same { 0..0 } else { residual.range(rows) };
        let [x, from, y] = disjoint(self.arena, [x.range(rows), from, y.range(rows)]);
        let start = if same { Start::Output } else { Start::Matrix(from) };
        let out = (y, start, Finish::Nothing);
        affine(self.parameters, self.panels, layer, x, out, self.scratch);
    }

    fn linear_gelu(&mut self, rows: usize, layer: &Linear, x: Slot, y: Slot, slope: Option<Slot>) {
        let slopes = slope.map_or(0..0, |slope| slope.range(rows));
        let [x, y, slopes] = disjoint(self.arena, [x.range(rows), y.range(rows), slopes]);
        let finish = match slope {
            None => Finish::Gelu,
            Some(_) => Finish::GeluWithSlope(slopes),
        };
        let out = (y, Start::Nothing, finish);
        affine(self.parameters, self.panels, layer, x, out, self.scratch);
    }

    fn linear_backward(
        &mut self,
        rows: usize,
        layer: &Linear,
        x: Slot,
        dy: Slot,
        dx: Option<(Slot, Write)>,
    ) {
        self.parameter_gradients(rows, layer, x, dy);
        if let Some((dx, write)) = dx {
            let [dy, dx] = disjoint(self.arena, [dy.range(rows), dx.range(rows)]);
            let out = (dx, write.into(), Finish::Nothing);
            input_gradient(self.parameters, layer, dy, out, self.scratch);
        }
    }

    fn linear_gelu_backward(
        &mut self,
        rows: usize,
        layer: &Linear,
        x: Slot,
        slope: Slot,
        dy: Slot,
        dx: Slot,
    ) {
        self.parameter_gradients(rows, layer, x, dy);
        let ranges = [slope.range(rows), dy.range(rows), dx.range(rows)];
        let [slope, dy, dx] = disjoint(self.arena, ranges);
        let out = (dx, Start::Nothing, Finish::Scale(slope));
        input_gradient(self.parameters, layer, dy, out, self.scratch);
    }

    fn layer_norm(&mut self, rows: usize, layer: &LayerNorm, x: Slot, y: Slot, stats: Slot) {
        let scale = &self.parameters[layer.scale..][..layer.width];
        let shift = &self.parameters[layer.shift..][..layer.width];
        let ranges = [x.range(rows), y.range(rows), stats.range(rows)];
        let [x, y, stats] = disjoint(self.arena, ranges);
        simd(layer_norm::Forward { scale, shift, x, y, stats });
    }

    fn layer_norm_backward(
        &mut self,
        rows: usize,
        layer: &LayerNorm,
        x: Slot,
        stats: Slot,
        dy: Slot,
        dx: Slot,
        write: Write,
    ) {
        let width = layer.width;
        let scale = &self.parameters[layer.scale..][..width];
        let own = [layer.scale..layer.scale + width, layer.shift..layer.shift + width];
        let [dscale, dshift] = disjoint(self.gradient, own);
        let ranges = [x.range(rows), stats.range(rows), dy.range(rows), dx.range(rows)];
        let [x, stats, dy, dx] = disjoint(self.arena, ranges);
        simd(layer_norm::Backward { scale, x, stats, dy, dx, dscale, dshift, write });
    }

    fn add_positions(&mut self, positions: &[u32], samples: usize, offset: usize, x: Slot) {
        let x = &mut self.arena[x.range(positions.len() * samples)];
        let width = x.len() / (positions.len() * samples);
        for (token, &position) in x.chunks_exact_mut(samples * width).zip(positions) {
            let row = &self.parameters[offset + position as usize * width..][..width];
            simd(columns::AddRow { row, matrix: token });
        }
    }

    fn positions_backward(&mut self, positions: &[u32], samples: usize, offset: usize, dx: Slot) {
        let dx = &self.arena[dx.range(positions.len() * samples)];
        let width = dx.len() / (positions.len() * samples);
        for (matrix, &position) in dx.chunks_exact(samples * width).zip(positions) {
            let sum = &mut self.gradient[offset + position as usize * width..][..width];
            simd(columns::AddColumnSums { matrix, sum });
        }
    }

    fn add_to_tokens(&mut self, tokens: usize, samples: usize, from: Slot, x: Slot) {
        let [row, matrix] = self.slots([from.range(samples), x.range(tokens * samples)]);
        simd(columns::AddRow { row, matrix });
    }

    fn sum_tokens(&mut self, tokens: usize, samples: usize, x: Slot, to: Slot) {
        let [matrix, sum] = self.slots([x.range(tokens * samples), to.range(samples)]);
        sum.fill(F::zero());
        simd(columns::AddColumnSums { matrix, sum });
    }

    fn attention(
        &mut self,
        samples: usize,
        shape: &AttentionShape,
        qkv: Slot,
        probabilities: Slot,
        out: Slot,
    ) {
        let shape = attention::Shape::new(samples, shape);
        let ranges = [
            qkv.range(shape.key_rows()),
            probabilities.range(samples),
            out.range(shape.query_rows()),
        ];
        let [qkv, probabilities, out] = disjoint(self.arena, ranges);
        attention::Forward { shape, qkv, probabilities, out, scratch: &mut *self.scratch }.run();
    }

    fn attention_backward(
        &mut self,
        samples: usize,
        shape: &AttentionShape,
        qkv: Slot,
        probabilities: Slot,
        dout: Slot,
        dqkv: Slot,
    ) {
        let shape = attention::Shape::new(samples, shape);
        let ranges = [
            qkv.range(shape.key_rows()),
            probabilities.range(samples),
            dout.range(shape.query_rows()),
            dqkv.range(shape.key_rows()),
        ];
        let [qkv, probabilities, dout, dqkv] = disjoint(self.arena, ranges);
        let scratch = &mut *self.scratch;
        attention::Backward { shape, qkv, probabilities, dout, dqkv, scratch }.run();
    }

    fn edge_sum(&mut self, samples: usize, shape: &EdgeShape, slots: EdgeSlots) {
        self.edges(samples, shape, slots).sum();
    }

    fn edge_sum_transposed(&mut self, samples: usize, shape: &EdgeShape, slots: EdgeSlots) {
        self.edges(samples, shape, slots).sum_transposed();
    }

    fn edge_product(&mut self, samples: usize, shape: &EdgeShape, slots: EdgeSlots, write: Write) {
        self.edges(samples, shape, slots).product(write);
    }

    fn edge_gate(&mut self, samples: usize, shape: &EdgeShape, gates: Slot, from: Slot, out: Slot) {
        let ranges = [gates.range(shape.to * samples), from.range(samples), out.range(samples)];
        let [gates, from, out] = self.slots(ranges);
        edges::gate(shape, samples, gates, from, out);
    }

    fn edge_gate_backward(
        &mut self,
        samples: usize,
        shape: &EdgeShape,
        gates: Slot,
        from: Slot,
        dout: Slot,
        dgates: Slot,
        dfrom: Option<Slot>,
    ) {
        let rows = shape.to * samples;
        let [gates, from, dout, dgates, dfrom_values] = self.slots([
            gates.range(rows),
            from.range(samples),
            dout.range(samples),
            dgates.range(rows),
            dfrom.map_or(0..0, |slot| slot.range(samples)),
        ]);
        let dfrom = dfrom.map(|_| dfrom_values);
        edges::gate_backward(shape, samples, (gates, dgates), (from, dfrom), dout);
    }

    fn squared_error(
        &mut self,
        samples: usize,
        output: Slot,
        target: Slot,
        entry_weights: Option<Slot>,
        sample_weights: Option<Slot>,
        scale: f64,
    ) -> f64 {
        let width = output.width;
        // The weights come before the output in the arena or after it: take them out by range.
        let empty = 0..0;
        let [output, target, entry, sample] = self.slots([
            output.range(samples),
            target.range(samples),
            entry_weights.map_or(empty.clone(), |w| w.range(1)),
            sample_weights.map_or(empty, |w| w.range(samples)),
        ]);
        simd(loss::SquaredError { width, output, target, entry, sample, scale })
    }
}
