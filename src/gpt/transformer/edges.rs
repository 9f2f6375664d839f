//! What a pass does along edges: messages in every block, and the decoder of edges.

use super::arena::{Arena, BlockSlots, Training};
use super::parameters::BlockPlaces;
use super::Transformer;
use crate::engine::{EdgeSlots, Ops, Write};

impl Transformer {
    /// Adds what units send each other to the stream of a block.
    pub(super) fn pass_messages(
        &self,
        arena: &Arena,
        block: &BlockPlaces,
        slots: &BlockSlots,
        samples: usize,
        ops: &mut impl Ops,
    ) {
        for (i, edges) in self.tokens.edges.iter().enumerate() {
            for (way, direction) in edges.directions.iter().enumerate() {
                let (layers, messages) = (&block.messages[i][way], &arena.edges[i].0[way]);
                let sender = slots.normed_attention.skip(direction.from.start * samples);
                let rows = direction.from.len() * samples;
                ops.linear(rows, &layers.send, sender, messages.slots.from);
                let received = slots.received[i][way];
                let arriving = EdgeSlots { to: received, ..messages.slots };
                ops.edge_sum(samples, &messages.shape, arriving);
                let middle = slots.middle.skip(direction.to.start * samples);
                let rows = direction.to.len() * samples;
                ops.linear_add(rows, &layers.receive, received, middle, middle);
            }
        }
    }

    /// Gradients of [`pass_messages`](Self::pass_messages): reads that of the stream after
    /// it, and adds to that of the normalised tokens.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn pass_messages_backward(
        &self,
        arena: &Arena,
        training: &Training,
        block: &BlockPlaces,
        slots: &BlockSlots,
        samples: usize,
        inputs: bool,
        ops: &mut impl Ops,
    ) {
        for (i, edges) in self.tokens.edges.iter().enumerate() {
            for (way, direction) in edges.directions.iter().enumerate() {
                let (layers, messages) = (&block.messages[i][way], &arena.edges[i].0[way]);
                let gradient = training.stream.skip(direction.to.start * samples);
                let (received, rows) = (slots.received[i][way], direction.to.len() * samples);
                let wanted = Some((messages.slots.to, Write::Set));
                ops.linear_backward(rows, &layers.receive, received, gradient, wanted);
                let sender = slots.normed_attention.skip(direction.from.start * samples);
                let rows = direction.from.len() * samples;
                if inputs {
                    // What was sent was not kept.
                    ops.linear(rows, &layers.send, sender, messages.slots.from);
                    let of_edges = training.edges[i].directions[way];
                    let slots = EdgeSlots { edges: of_edges, ..messages.slots };
                    ops.edge_product(samples, &messages.shape, slots, Write::Add);
                }
                ops.edge_sum_transposed(samples, &messages.shape, messages.slots);
                let sent = training.branch.skip(direction.from.start * samples);
                let wanted = Some((sent, Write::Add));
                ops.linear_backward(rows, &layers.send, sender, messages.slots.from, wanted);
            }
        }
    }

    /// Adds what is decoded for the edges to the output.
    pub(super) fn decode_edges(&self, arena: &Arena, samples: usize, ops: &mut impl Ops) {
        let edges = self.tokens.edges.iter().zip(&arena.edges).zip(&self.places.edge_decoders);
        for ((edges, (messages, decoded)), layers) in edges {
            let along = &edges.directions[0];
            let to = arena.decoded.skip(along.to.start * samples);
            let from = arena.decoded.skip(along.from.start * samples);
            let slots = decoded.slots;
            ops.linear(along.to.len() * samples, &layers.to, to, slots.to);
            ops.linear(along.from.len() * samples, &layers.from, from, slots.from);
            ops.edge_product(samples, &decoded.shape, slots, Write::Set);
            ops.linear(along.to.len() * samples, &layers.gates, to, decoded.gates);
            let given = messages[0].slots.edges;
            ops.edge_gate(samples, &decoded.gate_shape(), decoded.gates, given, slots.edges);
            ops.scatter_add(&edges.table, samples, slots.edges, arena.output);
        }
    }

    /// Gradients of [`decode_edges`](Self::decode_edges), which are added to those of the
    /// decoded tokens.
    pub(super) fn decode_edges_backward(
        &self,
        arena: &Arena,
        training: &Training,
        samples: usize,
        inputs: bool,
        ops: &mut impl Ops,
    ) {
        let edges = self.tokens.edges.iter().zip(&arena.edges).zip(&self.places.edge_decoders);
        for (((edges, (messages, decoded)), layers), gradients) in edges.zip(&training.edges) {
            let slots = decoded.slots;
            // The decoded weights are not needed any more: their gradient takes their place.
            ops.gather(&edges.table, samples, arena.output, slots.edges);
            let of_to = EdgeSlots { to: gradients.to, ..slots };
            ops.edge_sum(samples, &decoded.shape, of_to);
            let of_from = EdgeSlots { from: gradients.from, ..slots };
            ops.edge_sum_transposed(samples, &decoded.shape, of_from);
            let (given, of_given) = (messages[0].slots.edges, gradients.directions[0]);
            ops.edge_gate_backward(
                samples,
                &decoded.gate_shape(),
                decoded.gates,
                given,
                slots.edges,
                gradients.gates,
                inputs.then_some(of_given),
            );
            let along = &edges.directions[0];
            for (layer, units, gradient) in [
                (&layers.to, &along.to, gradients.to),
                (&layers.from, &along.from, gradients.from),
                (&layers.gates, &along.to, gradients.gates),
            ] {
                let [x, dx] =
                    [arena.decoded, training.branch].map(|s| s.skip(units.start * samples));
                let wanted = Some((dx, Write::Add));
                ops.linear_backward(units.len() * samples, layer, x, gradient, wanted);
            }
        }
    }
}
