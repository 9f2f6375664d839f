//! Forward and backward pass, written once over the engine's operations.

use super::arena::{Arena, Hidden, Layers, Training};
use super::Transformer;
use crate::engine::{AttentionShape, Linear, Ops, Slot, Write};

impl Transformer {
    /// Output of `samples` inputs, from `arena.input` to `arena.output`.
    pub(crate) fn forward(&self, arena: &Arena, samples: usize, ops: &mut impl Ops) {
        let (tokens, places) = (&self.tokens, &self.places);
        let total = tokens.len() * samples;
        let outputs = tokens.num_outputs() * samples;

        let mut first = 0;
        let encoders = tokens.inputs.iter().zip(&places.encoders).zip(&arena.encoders);
        for ((class, chain), slots) in encoders {
            let rows = class.tokens * samples;
            let encoded = arena.encoded.skip(first);
            if class.values > 0 {
                ops.gather(&class.table, samples, arena.input, slots.values);
                project(ops, rows, chain, slots, slots.values, encoded);
            } else {
                ops.clear(rows, encoded);
            }
            first += rows;
        }
        for (edges, (messages, _)) in tokens.edges.iter().zip(&arena.edges) {
            for (direction, messages) in edges.directions.iter().zip(messages) {
                ops.gather(&direction.table, samples, arena.input, messages.slots.edges);
            }
        }
        ops.layer_norm(total, &places.norm_in, arena.encoded, arena.stream, arena.stats_in);
        ops.add_positions(&tokens.positions, samples, places.positions, arena.stream);
        if let (Some(layer), Some(scalars)) = (&places.conditioning, arena.encoders.last()) {
            ops.linear(samples, layer, scalars.values, arena.conditioning);
            ops.add_to_tokens(tokens.len(), samples, arena.conditioning, arena.stream);
        }

        let mut stream = arena.stream;
        for (i, (block, slots)) in places.blocks.iter().zip(&arena.blocks).enumerate() {
            let (rows, attention) = self.asking(arena, i, samples);
            ops.layer_norm(
                total,
                &block.norm_attention,
                stream,
                slots.normed_attention,
                slots.stats_attention,
            );
            ops.linear(total, &block.qkv, slots.normed_attention, slots.qkv);
            ops.attention(samples, &attention, slots.qkv, slots.probabilities, slots.attended);
            ops.linear_add(rows, &block.projection, slots.attended, stream, slots.middle);
            self.pass_messages(arena, block, slots, samples, ops);

            ops.layer_norm(rows, &block.norm_mlp, slots.middle, slots.normed_mlp, slots.stats_mlp);
            let hidden = slots.hidden;
            ops.linear_gelu(rows, &block.expand, slots.normed_mlp, hidden.value, hidden.slope);
            ops.linear_add(rows, &block.contract, hidden.value, slots.middle, slots.end);
            stream = slots.end;
        }

        ops.layer_norm(outputs, &places.norm_out, stream, arena.decoded, arena.stats_out);
        ops.copy_columns(samples, arena.input, arena.output.width, arena.output);
        let mut first = 0;
        let decoders = tokens.outputs.iter().zip(&places.decoders).zip(&arena.decoders);
        for ((class, chain), slots) in decoders {
            let rows = class.tokens * samples;
            if class.values > 0 {
                project(ops, rows, chain, slots, arena.decoded.skip(first), slots.values);
                ops.scatter_add(&class.table, samples, slots.values, arena.output);
            }
            first += rows;
        }
        self.decode_edges(arena, samples, ops);
    }

    /// Gradients of the parameters after [`forward`](Self::forward), from the
    /// gradient of the output in `arena.output`. With `inputs`, also the
    /// gradient of the input, but for the way from start to output that does not
    /// pass through tokens, and for scalars that are added to every token.
    pub(crate) fn backward(
        &self,
        arena: &Arena,
        training: &Training,
        samples: usize,
        inputs: bool,
        ops: &mut impl Ops,
    ) {
        let (tokens, places) = (&self.tokens, &self.places);
        let total = tokens.len() * samples;
        let outputs = tokens.num_outputs() * samples;
        let (stream, branch) = (training.stream, training.branch);

        let mut first = 0;
        let decoders = tokens.outputs.iter().zip(&places.decoders).zip(&arena.decoders);
        for ((class, chain), slots) in decoders {
            let rows = class.tokens * samples;
            let (x, dx) = (arena.decoded.skip(first), branch.skip(first));
            if class.values > 0 {
                // The decoded values are not needed any more: their gradient takes their place.
                ops.gather(&class.table, samples, arena.output, slots.values);
                project_backward(ops, rows, chain, slots, training, x, slots.values, Some(dx));
            } else {
                ops.clear(rows, dx);
            }
            first += rows;
        }
        if inputs {
            let edges = training.edges.iter().flat_map(|edges| edges.directions);
            edges.for_each(|slot| ops.clear(samples, slot));
        }
        self.decode_edges_backward(arena, training, samples, inputs, ops);
        let ends = |i: usize| arena.blocks[i].end;
        let last = ends(arena.blocks.len() - 1);
        let (norm, stats) = (&places.norm_out, arena.stats_out);
        ops.layer_norm_backward(outputs, norm, last, stats, branch, stream, Write::Set);
        ops.clear(total - outputs, stream.skip(outputs));

        for (i, (block, slots)) in places.blocks.iter().zip(&arena.blocks).enumerate().rev() {
            let (rows, attention) = self.asking(arena, i, samples);
            let start = if i == 0 { arena.stream } else { ends(i - 1) };

            let (wide, hidden) = (training.wide, slots.hidden);
            linear_gelu_backward(ops, rows, &block.contract, hidden, stream, wide);
            ops.linear_backward(rows, &block.expand, slots.normed_mlp, wide, set(branch));
            let (norm, stats) = (&block.norm_mlp, slots.stats_mlp);
            ops.layer_norm_backward(rows, norm, slots.middle, stats, branch, stream, Write::Add);

            ops.linear_backward(rows, &block.projection, slots.attended, stream, set(branch));
            ops.attention_backward(
                samples,
                &attention,
                slots.qkv,
                slots.probabilities,
                branch,
                training.qkv,
            );
            let normed = slots.normed_attention;
            ops.linear_backward(total, &block.qkv, normed, training.qkv, set(branch));
            self.pass_messages_backward(arena, training, block, slots, samples, inputs, ops);
            let (norm, stats) = (&block.norm_attention, slots.stats_attention);
            ops.layer_norm_backward(total, norm, start, stats, branch, stream, Write::Add);
        }

        if let (Some(layer), Some(scalars)) = (&places.conditioning, arena.encoders.last()) {
            ops.sum_tokens(tokens.len(), samples, stream, arena.conditioning);
            // Scalars are not what a gradient of the input is asked for.
            ops.linear_backward(samples, layer, scalars.values, arena.conditioning, None);
        }
        ops.positions_backward(&tokens.positions, samples, places.positions, stream);
        let (norm, stats) = (&places.norm_in, arena.stats_in);
        ops.layer_norm_backward(total, norm, arena.encoded, stats, stream, branch, Write::Set);
        if inputs {
            ops.clear(samples, training.input);
        }
        let mut first = 0;
        let encoders = tokens.inputs.iter().zip(&places.encoders).zip(&arena.encoders);
        for ((class, chain), slots) in encoders {
            let rows = class.tokens * samples;
            if class.values > 0 {
                let dx = Slot { width: class.values, ..training.values };
                let dy = branch.skip(first);
                let wanted = inputs.then_some(dx);
                project_backward(ops, rows, chain, slots, training, slots.values, dy, wanted);
                if inputs {
                    ops.scatter_add(&class.table, samples, dx, training.input);
                }
            }
            first += rows;
        }
        if inputs {
            for (edges, gradients) in tokens.edges.iter().zip(&training.edges) {
                for (direction, &slot) in edges.directions.iter().zip(&gradients.directions) {
                    ops.scatter_add(&direction.table, samples, slot, training.input);
                }
            }
        }
    }

    /// Rows that block `i` computes, and its attention: after the last block
    /// only output tokens are read, so only they ask there.
    fn asking(&self, arena: &Arena, i: usize, samples: usize) -> (usize, AttentionShape) {
        let last = i + 1 == self.places.blocks.len();
        let queries = if last { self.tokens.num_outputs() } else { self.tokens.len() };
        (queries * samples, AttentionShape { queries, ..arena.attention })
    }
}

/// Where a gradient goes that replaces what is there.
fn set(slot: Slot) -> Option<(Slot, Write)> {
    Some((slot, Write::Set))
}

/// An encoder or decoder: linear layers with a GELU between them.
fn project(ops: &mut impl Ops, rows: usize, chain: &[Linear], slots: &Layers, x: Slot, y: Slot) {
    let mut x = x;
    for (layer, hidden) in chain.iter().zip(&slots.hidden) {
        ops.linear_gelu(rows, layer, x, hidden.value, hidden.slope);
        x = hidden.value;
    }
    if let Some(layer) = chain.last() {
        ops.linear(rows, layer, x, y);
    }
}

/// Gradients of a layer that reads a GELU.
fn linear_gelu_backward(
    ops: &mut impl Ops,
    rows: usize,
    layer: &Linear,
    x: Hidden,
    dy: Slot,
    dx: Slot,
) {
    let Some(slope) = x.slope else { unreachable!("an arena for training holds slopes") };
    ops.linear_gelu_backward(rows, layer, x.value, slope, dy, dx);
}

/// Gradients of [`project`].
#[allow(clippy::too_many_arguments)]
fn project_backward(
    ops: &mut impl Ops,
    rows: usize,
    chain: &[Linear],
    slots: &Layers,
    training: &Training,
    x: Slot,
    dy: Slot,
    dx: Option<Slot>,
) {
    let mut dy = dy;
    for (i, layer) in chain.iter().enumerate().rev() {
        match i.checked_sub(1).map(|before| slots.hidden[before]) {
            None => ops.linear_backward(rows, layer, x, dy, dx.and_then(set)),
            Some(hidden) => {
                let dhidden = training.hidden[i % 2];
                linear_gelu_backward(ops, rows, layer, hidden, dy, dhidden);
                dy = dhidden;
            }
        }
    }
}
