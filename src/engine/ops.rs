//! The operations that a transformer is made of.

/// A matrix of activations: rows of `width` values, the first at `offset` in
/// the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub offset: usize,
    pub width: usize,
    /// Whether a device may keep its values in bf16. Such slots then lie in an arena of
    /// their own; on the CPU all are alike.
    pub narrow: bool,
}

impl Slot {
    /// The same slot without its first `rows` rows.
    pub fn skip(self, rows: usize) -> Self {
        Self { offset: self.offset + rows * self.width, ..self }
    }

    /// Positions of the first `rows` rows in the arena.
    pub fn range(self, rows: usize) -> std::ops::Range<usize> {
        self.offset..self.offset + rows * self.width
    }
}

/// Where a linear layer lies in the parameters: `weight [outputs, inputs]`,
/// `bias [outputs]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linear {
    pub weight: usize,
    pub bias: Option<usize>,
    pub inputs: usize,
    pub outputs: usize,
}

/// Where a layer normalisation lies in the parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerNorm {
    pub scale: usize,
    pub shift: usize,
    pub width: usize,
}

/// Shape of an attention layer.
///
/// The rows of `qkv` hold keys, queries and values of `width` each, in that
/// order. Only the first `queries` tokens ask; all tokens are looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    pub tokens: usize,
    pub queries: usize,
    pub heads: usize,
    pub width: usize,
}

/// Shape of a trilinear form of weights between units and the tokens at both ends:
/// `sum over u, v, c, r of edges[n, u, v, c] to[row(u, n), r] from[row(v, n), c, r]`.
///
/// What the sums and products along edges compute are its derivatives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EdgeShape {
    /// Units `u` that messages go to.
    pub to: usize,
    /// Units `v` that they come from.
    pub from: usize,
    /// Values `c` of an edge.
    pub channels: usize,
    /// Values `r` of a message.
    pub rank: usize,
}

impl EdgeShape {
    /// Values of the edges to one unit.
    pub fn columns(&self) -> usize {
        self.from * self.channels
    }

    /// Values of all edges.
    pub fn len(&self) -> usize {
        self.to * self.columns()
    }

    /// Values of scratch memory.
    pub fn scratch_len(&self) -> usize {
        (self.to + self.columns()) * self.rank
    }
}

/// Where the factors of an [`EdgeShape`]'s form lie, and its scratch memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EdgeSlots {
    /// `[N, U, V, C]`.
    pub edges: Slot,
    /// `[U N, R]`.
    pub to: Slot,
    /// `[V N, C R]`.
    pub from: Slot,
    /// `[1, scratch_len]`.
    pub scratch: Slot,
}

/// Whether a result replaces what a slot holds or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Set,
    Add,
}

/// Fused operations on one device, over one set of parameters, gradients and
/// activations.
///
/// Activations are token-major: row `token * samples + sample`. So every class
/// of tokens that share a projection is one block of rows, and one matrix
/// product. Gradients of parameters are added to what is there.
pub(crate) trait Ops {
    /// `to[row(u, n), c] = from[n, table[u * width + c]]`.
    fn gather(&mut self, table: &[u32], samples: usize, from: Slot, to: Slot);
    /// `to[n, table[u * width + c]] += from[row(u, n), c]`; the transpose of
    /// [`gather`](Self::gather).
    fn scatter_add(&mut self, table: &[u32], samples: usize, from: Slot, to: Slot);
    /// `to[n, c] = from[n, column + c]`.
    fn copy_columns(&mut self, samples: usize, from: Slot, column: usize, to: Slot);
    /// Zeroes rows.
    fn clear(&mut self, rows: usize, slot: Slot);

    /// `y = x Wᵀ + b`.
    fn linear(&mut self, rows: usize, layer: &Linear, x: Slot, y: Slot);
    /// `y = residual + x Wᵀ + b`; `y` may be `residual`.
    fn linear_add(&mut self, rows: usize, layer: &Linear, x: Slot, residual: Slot, y: Slot);
    /// `y = gelu(x Wᵀ + b)`, and the slope of the GELU there if asked for.
    fn linear_gelu(&mut self, rows: usize, layer: &Linear, x: Slot, y: Slot, slope: Option<Slot>);
    /// Gradients of the layer, and `dx = dy W`, or that added, if asked for.
    fn linear_backward(
        &mut self,
        rows: usize,
        layer: &Linear,
        x: Slot,
        dy: Slot,
        dx: Option<(Slot, Write)>,
    );
    /// Gradients of a layer that reads a GELU, and of what that read: `dx = slope (dy W)`.
    fn linear_gelu_backward(
        &mut self,
        rows: usize,
        layer: &Linear,
        x: Slot,
        slope: Slot,
        dy: Slot,
        dx: Slot,
    );

    /// `y = (x - mean) / deviation * scale + shift`; `stats` holds the mean and
    /// one over the deviation of every row.
    fn layer_norm(&mut self, rows: usize, layer: &LayerNorm, x: Slot, y: Slot, stats: Slot);
    /// Gradients of the layer, and `dx`.
    #[allow(clippy::too_many_arguments)]
    fn layer_norm_backward(
        &mut self,
        rows: usize,
        layer: &LayerNorm,
        x: Slot,
        stats: Slot,
        dy: Slot,
        dx: Slot,
        write: Write,
    );

    /// `x[row(t, n)] += embedding[position[t]]`, the embedding at `offset` in the
    /// parameters.
    fn add_positions(&mut self, positions: &[u32], samples: usize, offset: usize, x: Slot);
    /// Gradient of the embedding.
    fn positions_backward(&mut self, positions: &[u32], samples: usize, offset: usize, dx: Slot);

    /// `x[row(t, n)] += from[n]` for every token `t`.
    fn add_to_tokens(&mut self, tokens: usize, samples: usize, from: Slot, x: Slot);
    /// `to[n] = sum over t of x[row(t, n)]`: the transpose of
    /// [`add_to_tokens`](Self::add_to_tokens).
    fn sum_tokens(&mut self, tokens: usize, samples: usize, x: Slot, to: Slot);

    /// `out = softmax(q kᵀ / sqrt(head size)) v`, with the probabilities kept.
    fn attention(
        &mut self,
        samples: usize,
        shape: &AttentionShape,
        qkv: Slot,
        probabilities: Slot,
        out: Slot,
    );
    /// Gradient of `qkv`.
    fn attention_backward(
        &mut self,
        samples: usize,
        shape: &AttentionShape,
        qkv: Slot,
        probabilities: Slot,
        dout: Slot,
        dqkv: Slot,
    );

    /// `to[row(u, n), r] = sum over v, c of edges[n, u, v, c] from[row(v, n), c, r]`.
    fn edge_sum(&mut self, samples: usize, shape: &EdgeShape, slots: EdgeSlots);
    /// `from[row(v, n), c, r] = sum over u of edges[n, u, v, c] to[row(u, n), r]`.
    fn edge_sum_transposed(&mut self, samples: usize, shape: &EdgeShape, slots: EdgeSlots);
    /// `edges[n, u, v, c] = sum over r of to[row(u, n), r] from[row(v, n), c, r]`, or that
    /// added.
    fn edge_product(&mut self, samples: usize, shape: &EdgeShape, slots: EdgeSlots, write: Write);
    /// `out[n, u, v, c] += sum over r of gates[row(u, n), r] from[n, u, v, r, c]`: what edges
    /// hold, times gates of the unit that they go to.
    fn edge_gate(&mut self, samples: usize, shape: &EdgeShape, gates: Slot, from: Slot, out: Slot);
    /// Gradient of the gates, and that of what was gated, which is added, if asked for.
    #[allow(clippy::too_many_arguments)]
    fn edge_gate_backward(
        &mut self,
        samples: usize,
        shape: &EdgeShape,
        gates: Slot,
        from: Slot,
        dout: Slot,
        dgates: Slot,
        dfrom: Option<Slot>,
    );

    /// `sum over n, c of w (output - target)²` with `w = entry[c] sample[n]`;
    /// `output` becomes `2 scale w (output - target)`.
    #[allow(clippy::too_many_arguments)]
    fn squared_error(
        &mut self,
        samples: usize,
        output: Slot,
        target: Slot,
        entry_weights: Option<Slot>,
        sample_weights: Option<Slot>,
        scale: f64,
    ) -> f64;
}
