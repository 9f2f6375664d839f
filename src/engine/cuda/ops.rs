//! The engine's operations on a device.
//!
//! | operation | kernels, formula | precision |
//! |---|---|---|
//! | products of matrices | cuBLASLt, with the bias where there is one | factors as [`Math`] says, sums in `f32` |
//! | GELU | `gelu_*`, `u Φ(u)` exactly (cuBLASLt has only the approximation by `tanh`) | `f32` |
//! | LayerNorm | `layer_norm_*` | `f32` |
//! | attention | `attention_*`, one kernel forward, two backward | `f32` |
//! | sums over rows | `column_sums_*`, then `add_partials`: pieces of fixed size in a fixed order | `f32` |
//! | loss, norm of the gradient | `squared_error`, `squares`, `finish_step` | `f32`, sums of sums in `f64` |
//! | edges | `edge_*` | `f32` |
//!
//! No kernel adds to memory that another thread adds to: the same device and libraries give the
//! same bits. Each has a test against the CPU engine in [`check`](super::check).

use super::backend::{Address, Argument, Backend, Factor, Product};
use super::buffers::{arguments, Cuda};
use crate::engine::cpu::padded;
use crate::engine::{
    AttentionShape, EdgeShape, EdgeSlots, LayerNorm, Linear, Math, Ops, Slot, Write,
};

/// Rows of a tile of attention.
const TILE: usize = 16;

impl<B: Backend> Cuda<B> {
    /// `sum[c] += x[0, c] + x[1, c] + ..`
    fn add_column_sums(&mut self, rows: usize, x: Slot, sum: Address) {
        let (pieces, piece) = Self::pieces(rows);
        let partial = self.partial(pieces * x.width);
        let kernel = if x.narrow { "column_sums_h" } else { "column_sums_f" };
        let width = x.width as i32;
        let at = self.at(x);
        self.by_row(
            kernel,
            pieces,
            x.width,
            arguments![partial, at, rows as i64, piece as i64, width],
        );
        self.add_partials(sum, partial, pieces, x.width, x.width);
    }

    fn add_partials(
        &mut self,
        sum: Address,
        partial: Address,
        pieces: usize,
        stride: usize,
        width: usize,
    ) {
        let arguments = arguments![sum, partial, pieces as i32, stride as i64, width as i32];
        self.by_row("add_partials", 1, width, arguments);
    }

    /// Where the values of a slot lie in this precision: there, or in scratch memory.
    fn in_precision(&mut self, rows: usize, slot: Slot, narrow: bool) -> Address {
        let (from, count) = (self.at(slot), rows * slot.width);
        if slot.narrow == narrow {
            return from;
        }
        let (kernel, size) = if narrow { ("narrow", 2) } else { ("widen", 4) };
        let to = self.matrix(size * count);
        self.by_value(kernel, count, arguments![to, from, count as i64]);
        to
    }

    fn multiply(&mut self, product: Product) {
        // cuBLASLt rounds no result of f32 to bf16; a model's plan asks for none.
        debug_assert!(product.narrow || !product.out_narrow, "{product:?}");
        let own = self.own_products;
        self.attempt(|backend| match own {
            _ if product.m == 0 || product.n == 0 => Ok(()),
            false => backend.multiply(&product),
            true => {
                let (kernel, blocks, arguments) = product.kernel();
                backend.launch(kernel, blocks, 256, &arguments)
            }
        });
    }

    /// `y = x Wᵀ`, with a bias and added to something if there are such.
    fn product(
        &mut self,
        rows: usize,
        layer: &Linear,
        x: Slot,
        y: Slot,
        bias: Option<usize>,
        add: Option<Slot>,
    ) {
        let weight = Factor { at: self.parameter_like(layer.weight, x.narrow), transposed: true };
        self.multiply(Product {
            m: rows,
            n: layer.outputs,
            k: layer.inputs,
            a: Factor { at: self.at(x), transposed: false },
            b: weight,
            narrow: x.narrow,
            out: self.at(y),
            out_narrow: y.narrow,
            add: add.map(|slot| self.at(slot)),
            bias: bias.map(|bias| self.parameter_like(bias, y.narrow)),
            tf32: self.math != Math::F32,
        });
    }

    /// The loss of every sample goes to `losses`, the gradient of the output takes its place.
    pub fn squared_errors(
        &mut self,
        samples: usize,
        output: Slot,
        target: Address,
        weights: [Option<Address>; 2],
        scale: f64,
        losses: Address,
    ) {
        let [entry, sample] = weights.map(|weights| weights.unwrap_or(0));
        let arguments =
            arguments![losses, self.at(output), target, entry, sample, scale, output.width as i64];
        self.attempt(|backend| backend.launch("squared_error", [samples, 1], 256, arguments));
    }

    /// The arguments that all kernels on edges end in.
    fn edge_arguments(samples: usize, shape: &EdgeShape) -> [Argument; 5] {
        [samples, shape.to, shape.from, shape.channels, shape.rank]
            .map(|value| Argument::from(value as i32))
    }
}

impl<B: Backend> Ops for Cuda<B> {
    fn gather(&mut self, table: &[u32], samples: usize, from: Slot, to: Slot) {
        let rows = table.len() / to.width * samples;
        let places = self.own_table(table);
        let arguments = arguments![
            self.at(to),
            self.at(from),
            places,
            samples as i32,
            from.width as i64,
            to.width as i32
        ];
        self.by_row("gather", rows, to.width, arguments);
    }

    fn scatter_add(&mut self, table: &[u32], samples: usize, from: Slot, to: Slot) {
        let rows = table.len() / from.width * samples;
        let places = self.own_table(table);
        let arguments = arguments![
            self.at(to),
            self.at(from),
            places,
            samples as i32,
            to.width as i64,
            from.width as i32
        ];
        self.by_row("scatter_add", rows, from.width, arguments);
    }

    fn copy_columns(&mut self, samples: usize, from: Slot, column: usize, to: Slot) {
        let arguments = arguments![
            self.at(to),
            self.at(from),
            from.width as i64,
            column as i64,
            to.width as i32
        ];
        self.by_row("copy_columns", samples, to.width, arguments);
    }

    fn clear(&mut self, rows: usize, slot: Slot) {
        let size = if slot.narrow { 2 } else { 4 };
        let at = self.at(slot);
        if rows > 0 && slot.width > 0 {
            self.attempt(|backend| backend.zero(at, size * rows * slot.width));
        }
    }

    fn linear(&mut self, rows: usize, layer: &Linear, x: Slot, y: Slot) {
        self.product(rows, layer, x, y, layer.bias, None);
    }

    fn linear_add(&mut self, rows: usize, layer: &Linear, x: Slot, residual: Slot, y: Slot) {
        self.product(rows, layer, x, y, layer.bias, Some(residual));
    }

    fn linear_gelu(&mut self, rows: usize, layer: &Linear, x: Slot, y: Slot, slope: Option<Slot>) {
        self.product(rows, layer, x, y, None, None);
        let kernel = if y.narrow { "gelu_h" } else { "gelu_f" };
        let slope = slope.map_or(0, |slope| self.at(slope));
        let bias = layer.bias.map_or(0, |bias| self.parameter(bias));
        let arguments = arguments![self.at(y), slope, bias, layer.outputs as i32];
        self.by_row(kernel, rows, layer.outputs, arguments);
    }

    fn linear_backward(
        &mut self,
        rows: usize,
        layer: &Linear,
        x: Slot,
        dy: Slot,
        dx: Option<(Slot, Write)>,
    ) {
        let narrow = x.narrow;
        let tf32 = self.math != Math::F32;
        let dy_at = self.in_precision(rows, dy, narrow);
        let gradient = self.gradient_of(layer.weight);
        self.multiply(Product {
            m: layer.outputs,
            n: layer.inputs,
            k: rows,
            a: Factor { at: dy_at, transposed: true },
            b: Factor { at: self.at(x), transposed: false },
            narrow,
            out: gradient,
            out_narrow: false,
            add: Some(gradient),
            bias: None,
            tf32,
        });
        if let Some(bias) = layer.bias {
            let sum = self.gradient_of(bias);
            self.add_column_sums(rows, dy, sum);
        }
        if let Some((dx, write)) = dx {
            let out = self.at(dx);
            self.multiply(Product {
                m: rows,
                n: layer.inputs,
                k: layer.outputs,
                a: Factor { at: dy_at, transposed: false },
                b: Factor { at: self.parameter_like(layer.weight, narrow), transposed: false },
                narrow,
                out,
                out_narrow: dx.narrow,
                add: (write == Write::Add).then_some(out),
                bias: None,
                tf32,
            });
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
        self.linear_backward(rows, layer, x, dy, Some((dx, Write::Set)));
        let kernel = if dx.narrow { "multiply_h" } else { "multiply_f" };
        let count = rows * dx.width;
        let arguments = arguments![self.at(dx), self.at(slope), count as i64];
        self.by_value(kernel, count, arguments);
    }

    fn layer_norm(&mut self, rows: usize, layer: &LayerNorm, x: Slot, y: Slot, stats: Slot) {
        let kernel = if y.narrow { "layer_norm_h" } else { "layer_norm_f" };
        let arguments = arguments![
            self.at(y),
            self.at(stats),
            self.at(x),
            self.parameter(layer.scale),
            self.parameter(layer.shift),
            rows as i64,
            layer.width as i32
        ];
        self.by_warp(kernel, rows, arguments);
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
        let (pieces, piece) = Self::pieces(rows);
        let partial = self.partial(2 * pieces * width);
        let kernel = if dy.narrow { "layer_norm_sums_h" } else { "layer_norm_sums_f" };
        let arguments = arguments![
            partial,
            self.at(dy),
            self.at(x),
            self.at(stats),
            rows as i64,
            piece as i64,
            width as i32
        ];
        self.by_row(kernel, pieces, width, arguments);
        for (part, offset) in [layer.scale, layer.shift].into_iter().enumerate() {
            let (sum, from) = (self.gradient_of(offset), partial + (4 * part * width) as u64);
            self.add_partials(sum, from, pieces, 2 * width, width);
        }
        let kernel = match (dx.narrow, dy.narrow) {
            (false, false) => "layer_norm_input_ff",
            (false, true) => "layer_norm_input_fh",
            (true, _) => "layer_norm_input_hf",
        };
        let arguments = arguments![
            self.at(dx),
            self.at(dy),
            self.at(x),
            self.at(stats),
            self.parameter(layer.scale),
            rows as i64,
            width as i32,
            i32::from(write == Write::Add)
        ];
        self.by_warp(kernel, rows, arguments);
    }

    fn add_positions(&mut self, positions: &[u32], samples: usize, offset: usize, x: Slot) {
        let places = self.own_table(positions);
        let arguments =
            arguments![self.at(x), self.parameter(offset), places, samples as i32, x.width as i32];
        self.by_row("add_positions", positions.len() * samples, x.width, arguments);
    }

    fn positions_backward(&mut self, positions: &[u32], samples: usize, offset: usize, dx: Slot) {
        let count = positions.last().map_or(0, |&last| last as usize + 1);
        // Tokens are in the order of their positions: where those of each begin.
        let first = self.table(positions, true, || {
            let below = |p: u32| positions.partition_point(|&position| position < p) as u32;
            (0..=count as u32).map(below).collect()
        });
        let partial = self.partial(positions.len() * dx.width);
        let width = dx.width as i32;
        let rows = positions.len() * samples;
        let arguments = arguments![partial, self.at(dx), rows as i64, samples as i64, width];
        self.by_row("column_sums_f", positions.len(), dx.width, arguments);
        let arguments = arguments![self.gradient_of(offset), partial, first, width];
        self.by_row("add_by_position", count, dx.width, arguments);
    }

    fn add_to_tokens(&mut self, tokens: usize, samples: usize, from: Slot, x: Slot) {
        let arguments = arguments![self.at(x), self.at(from), samples as i32, x.width as i32];
        self.by_row("add_to_tokens", tokens * samples, x.width, arguments);
    }

    fn sum_tokens(&mut self, tokens: usize, samples: usize, x: Slot, to: Slot) {
        let arguments =
            arguments![self.at(to), self.at(x), tokens as i32, samples as i32, to.width as i32];
        self.by_row("sum_tokens", samples, to.width, arguments);
    }

    fn attention(
        &mut self,
        samples: usize,
        shape: &AttentionShape,
        qkv: Slot,
        probabilities: Slot,
        out: Slot,
    ) {
        let kernel = if qkv.narrow { "attention_h" } else { "attention_f" };
        let head = [self.at(out), self.at(probabilities), self.at(qkv)].map(Argument::from);
        let arguments = [&head[..], &attention_arguments(samples, shape)].concat();
        let blocks = [samples * shape.heads, shape.queries.div_ceil(TILE)];
        self.attempt(|backend| backend.launch(kernel, blocks, 128, &arguments));
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
        let rows = samples * shape.heads * shape.queries;
        let dscores = self.matrix(4 * rows * padded(shape.tokens));
        let head = [self.at(dqkv), dscores, self.at(dout), self.at(probabilities), self.at(qkv)];
        let arguments =
            [&head.map(Argument::from)[..], &attention_arguments(samples, shape)].concat();
        let kernels = match qkv.narrow {
            true => ["attention_queries_h", "attention_keys_h"],
            false => ["attention_queries_f", "attention_keys_f"],
        };
        for (kernel, rows) in kernels.into_iter().zip([shape.queries, shape.tokens]) {
            let blocks = [samples * shape.heads, rows.div_ceil(TILE)];
            self.attempt(|backend| backend.launch(kernel, blocks, 128, &arguments));
        }
    }

    fn edge_sum(&mut self, samples: usize, shape: &EdgeShape, slots: EdgeSlots) {
        let head = [self.at(slots.to), self.at(slots.edges), self.at(slots.from)];
        let arguments =
            [&head.map(Argument::from)[..], &Self::edge_arguments(samples, shape)].concat();
        self.by_row("edge_sum", shape.to * samples, shape.rank, &arguments);
    }

    fn edge_sum_transposed(&mut self, samples: usize, shape: &EdgeShape, slots: EdgeSlots) {
        let head = [self.at(slots.from), self.at(slots.edges), self.at(slots.to)];
        let arguments =
            [&head.map(Argument::from)[..], &Self::edge_arguments(samples, shape)].concat();
        let rows = shape.from * samples * shape.channels;
        self.by_row("edge_sum_transposed", rows, shape.rank, &arguments);
    }

    fn edge_product(&mut self, samples: usize, shape: &EdgeShape, slots: EdgeSlots, write: Write) {
        let head = [self.at(slots.edges), self.at(slots.to), self.at(slots.from)];
        let arguments = [
            &head.map(Argument::from)[..],
            &Self::edge_arguments(samples, shape),
            arguments![i32::from(write == Write::Add)],
        ]
        .concat();
        self.by_warp("edge_product", samples * shape.len(), &arguments);
    }

    fn edge_gate(&mut self, samples: usize, shape: &EdgeShape, gates: Slot, from: Slot, out: Slot) {
        let head = [self.at(out), self.at(gates), self.at(from)];
        let arguments =
            [&head.map(Argument::from)[..], &Self::edge_arguments(samples, shape)].concat();
        self.by_value("edge_gate", samples * shape.len(), &arguments);
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
        let tail = Self::edge_arguments(samples, shape);
        let head = [self.at(dgates), self.at(from), self.at(dout)];
        let arguments = [&head.map(Argument::from)[..], &tail].concat();
        self.by_warp("edge_gate_gates", shape.to * samples * shape.rank, &arguments);
        if let Some(dfrom) = dfrom {
            let head = [self.at(dfrom), self.at(gates), self.at(dout)];
            let arguments = [&head.map(Argument::from)[..], &tail].concat();
            let count = samples * shape.len() * shape.rank;
            self.by_value("edge_gate_values", count, &arguments);
        }
    }

    /// Waits for the device; a training takes [`squared_errors`](Self::squared_errors).
    fn squared_error(
        &mut self,
        samples: usize,
        output: Slot,
        target: Slot,
        entry_weights: Option<Slot>,
        sample_weights: Option<Slot>,
        scale: f64,
    ) -> f64 {
        let losses = self.partial(2 * samples);
        let weights = [entry_weights, sample_weights].map(|slot| slot.map(|slot| self.at(slot)));
        self.squared_errors(samples, output, self.at(target), weights, scale, losses);
        let mut values = vec![0.0f64; samples];
        self.attempt(|backend| backend.download(losses, bytemuck::cast_slice_mut(&mut values)));
        values.iter().sum()
    }
}

/// The arguments that all kernels of attention end in.
fn attention_arguments(samples: usize, shape: &AttentionShape) -> Vec<Argument> {
    let size = shape.width / shape.heads;
    let scale = (size as f64).sqrt().recip() as f32;
    let counts =
        [samples, shape.tokens, shape.queries, shape.heads, shape.width, padded(shape.tokens)];
    let counts = counts.into_iter().map(|value| Argument::from(value as i32));
    counts.chain([Argument::from(scale)]).collect()
}
