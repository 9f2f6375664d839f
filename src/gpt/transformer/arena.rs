//! Where the activations of a pass lie.

use super::Transformer;
use crate::engine::cpu::padded;
use crate::engine::{AttentionShape, EdgeShape, EdgeSlots, Linear, Slot};
use crate::gpt::edges::{Edges, GATES};

/// Activations of one pass over at most `samples` samples.
///
/// In training every activation that the backward pass reads has a place of its
/// own; at inference the blocks share theirs, and the stream is updated in place.
#[derive(Clone, Debug)]
pub(crate) struct Arena {
    /// Most samples of a pass.
    pub samples: usize,
    /// Values in all.
    pub len: usize,
    /// Narrow values in all, which are not among the others; 0 where none are.
    #[cfg(feature = "cuda")]
    pub narrow_len: usize,
    /// `[N, 2 P + scalars]`.
    pub input: Slot,
    /// `[N, P]`; the gradient of the output in the backward pass.
    pub output: Slot,
    pub(super) encoders: Vec<Layers>,
    /// What the scalars add to every token, `[N, D]`, and then its gradient.
    pub(super) conditioning: Slot,
    /// Encoded tokens `[T N, D]`.
    pub(super) encoded: Slot,
    pub(super) stats_in: Slot,
    /// What the first block reads.
    pub(super) stream: Slot,
    pub(super) blocks: Vec<BlockSlots>,
    pub(super) stats_out: Slot,
    /// Normalised output tokens.
    pub(super) decoded: Slot,
    pub(super) decoders: Vec<Layers>,
    /// For all edges of a tensor, both directions of messages, and the decoder.
    pub(super) edges: Vec<([Messages; 2], DecodedEdges)>,
    pub attention: AttentionShape,
    /// What only training needs.
    pub training: Option<Training>,
}

/// Messages in one direction.
#[derive(Clone, Debug)]
pub(super) struct Messages {
    pub shape: EdgeShape,
    /// Edges, what is sent, and the gradient of what is received: that itself has a place
    /// in every block.
    pub slots: EdgeSlots,
}

/// Edges that are decoded.
#[derive(Clone, Debug)]
pub(super) struct DecodedEdges {
    pub shape: EdgeShape,
    /// Decoded weights, and the factors that they are the product of.
    pub slots: EdgeSlots,
    pub gates: Slot,
}

impl DecodedEdges {
    /// Noised and starting weights, times their gates.
    pub fn gate_shape(&self) -> EdgeShape {
        EdgeShape { rank: GATES, ..self.shape }
    }
}

/// Slots of an encoder or decoder.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    /// What an encoder reads, or a decoder writes.
    pub values: Slot,
    /// After each GELU.
    pub hidden: Vec<Hidden>,
}

/// An activation after a GELU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hidden {
    pub value: Slot,
    /// Slope of the GELU, in training.
    pub slope: Option<Slot>,
}

#[derive(Clone, Debug)]
pub(super) struct BlockSlots {
    pub stats_attention: Slot,
    pub normed_attention: Slot,
    pub qkv: Slot,
    pub probabilities: Slot,
    pub attended: Slot,
    /// For all edges of a tensor, the messages that arrive along them and against them.
    pub received: Vec<[Slot; 2]>,
    /// The stream between attention and MLP.
    pub middle: Slot,
    pub stats_mlp: Slot,
    pub normed_mlp: Slot,
    pub hidden: Hidden,
    /// The stream after the block.
    pub end: Slot,
}

/// Slots that only training needs.
#[derive(Clone, Debug)]
pub(crate) struct Training {
    /// `[N, P]`.
    pub target: Slot,
    /// `[1, P]`.
    pub entry_weights: Slot,
    /// `[N, 1]`.
    pub sample_weights: Slot,
    /// Gradient of the input, `[N, 2 P + scalars]`.
    pub input: Slot,
    /// Gradient of the stream, `[T N, D]`.
    pub(super) stream: Slot,
    /// Gradient of a branch, `[T N, D]`.
    pub(super) branch: Slot,
    /// Gradients inside an encoder or decoder, by turns.
    pub(super) hidden: [Slot; 2],
    /// Gradient of the widened MLP, `[T N, 4 D]`.
    pub(super) wide: Slot,
    /// `[T N, 3 D]`.
    pub(super) qkv: Slot,
    /// Gradient of the values of one input class; its width is the class's.
    pub(super) values: Slot,
    /// For all edges of a tensor.
    pub(super) edges: Vec<EdgeGradients>,
}

/// Gradients of edges, and of what they are decoded from.
#[derive(Clone, Debug)]
pub(super) struct EdgeGradients {
    pub directions: [Slot; 2],
    pub to: Slot,
    pub from: Slot,
    pub gates: Slot,
}

impl Arena {
    /// Places the activations of passes over at most `samples` samples.
    pub fn new(model: &Transformer, samples: usize, training: bool) -> Self {
        Self::place(model, samples, training, Space::default())
    }

    /// The same, where what products of matrices read may be kept in bf16, apart from the rest.
    #[cfg(feature = "cuda")]
    pub fn with_narrow(model: &Transformer, samples: usize, training: bool) -> Self {
        Self::place(model, samples, training, Space { narrow: Some(0), ..Space::default() })
    }

    fn place(model: &Transformer, samples: usize, training: bool, mut space: Space) -> Self {
        let config = &model.config;
        let (width, tokens) = (config.width, &model.tokens);
        let (total, outputs) = (tokens.len() * samples, tokens.num_outputs() * samples);
        let parameters = model.layout.num_parameters();
        let attention = AttentionShape {
            tokens: tokens.len(),
            queries: tokens.len(),
            heads: config.heads,
            width,
        };
        let input = space.take(samples, tokens.input_len);
        let output = space.take(samples, parameters);
        let layers = |space: &mut Space, rows: usize, values: usize, chain: &[Linear]| Layers {
            values: space.take(rows, values),
            hidden: chain.iter().skip(1).map(|_| space.hidden(rows, width, training)).collect(),
        };
        let encoders = tokens.inputs.iter().zip(&model.places.encoders);
        let encoders = encoders
            .map(|(class, chain)| layers(&mut space, class.tokens * samples, class.values, chain))
            .collect();
        let conditioning = space.take(samples, width);
        let encoded = space.take(total, width);
        let stats_in = space.take(total, 2);
        let stream = space.take(total, width);

        let edges: Vec<_> = tokens.edges.iter().map(|edges| space.edges(samples, edges)).collect();

        let mut blocks: Vec<BlockSlots> = Vec::with_capacity(config.blocks);
        for _ in 0..config.blocks {
            let slots = match blocks.last() {
                Some(shared) if !training => shared.clone(),
                _ => BlockSlots {
                    stats_attention: space.take(total, 2),
                    normed_attention: space.take_narrow(total, width),
                    qkv: space.take_narrow(total, 3 * width),
                    probabilities: space.take(
                        samples,
                        (config.heads * tokens.len()).saturating_mul(padded(tokens.len())),
                    ),
                    attended: space.take_narrow(total, width),
                    received: edges
                        .iter()
                        .map(|(messages, _)| {
                            messages.each_ref().map(|messages| {
                                let EdgeShape { to, rank, .. } = messages.shape;
                                space.take(to * samples, rank)
                            })
                        })
                        .collect(),
                    middle: if training { space.take(total, width) } else { stream },
                    stats_mlp: space.take(total, 2),
                    normed_mlp: space.take_narrow(total, width),
                    hidden: space.narrow_hidden(total, 4 * width, training),
                    end: if training { space.take(total, width) } else { stream },
                },
            };
            blocks.push(slots);
        }
        let stats_out = space.take(outputs, 2);
        let decoded = space.take_narrow(outputs, width);
        let decoders = tokens.outputs.iter().zip(&model.places.decoders);
        let decoders = decoders
            .map(|(class, chain)| layers(&mut space, class.tokens * samples, class.values, chain))
            .collect();
        let training = training.then(|| {
            let widest = tokens.inputs.iter().map(|class| class.table.len()).max().unwrap_or(0);
            Training {
                target: space.take(samples, parameters),
                entry_weights: space.take(1, parameters),
                sample_weights: space.take(samples, 1),
                input: space.take(samples, tokens.input_len),
                stream: space.take(total, width),
                branch: space.take_narrow(total, width),
                hidden: [space.take(total, width), space.take(total, width)],
                wide: space.take_narrow(total, 4 * width),
                qkv: space.take_narrow(total, 3 * width),
                values: space.take(samples, widest),
                edges: edges.iter().map(|edges| space.edge_gradients(samples, edges)).collect(),
            }
        });
        Self {
            samples,
            len: space.end,
            #[cfg(feature = "cuda")]
            narrow_len: space.narrow.unwrap_or(0),
            input,
            output,
            encoders,
            conditioning,
            encoded,
            stats_in,
            stream,
            blocks,
            stats_out,
            decoded,
            decoders,
            edges,
            attention,
            training,
        }
    }
}

impl Arena {
    /// Where the stream lies before the first block, after each, and after the
    /// last normalisation. At inference blocks share their place.
    pub fn stages(&self) -> impl Iterator<Item = Slot> + '_ {
        let blocks = self.blocks.iter().map(|block| block.end);
        std::iter::once(self.stream).chain(blocks).chain([self.decoded])
    }
}

/// Hands out slots one after the other, each on a cache line of its own.
#[derive(Default)]
struct Space {
    end: usize,
    /// Where the next narrow slot begins, if they lie apart.
    narrow: Option<usize>,
}

impl Space {
    fn take(&mut self, rows: usize, width: usize) -> Slot {
        let slot = Slot { offset: self.end, width, narrow: false };
        self.end = after(self.end, rows, width);
        slot
    }

    fn take_narrow(&mut self, rows: usize, width: usize) -> Slot {
        let Some(end) = self.narrow else { return self.take(rows, width) };
        self.narrow = Some(after(end, rows, width));
        Slot { offset: end, width, narrow: true }
    }

    fn hidden(&mut self, rows: usize, width: usize, training: bool) -> Hidden {
        let value = self.take(rows, width);
        Hidden { value, slope: training.then(|| self.take(rows, width)) }
    }

    fn narrow_hidden(&mut self, rows: usize, width: usize, training: bool) -> Hidden {
        let value = self.take_narrow(rows, width);
        Hidden { value, slope: training.then(|| self.take_narrow(rows, width)) }
    }

    fn edges(&mut self, samples: usize, edges: &Edges) -> ([Messages; 2], DecodedEdges) {
        let rank = edges.rank();
        let messages = edges.directions.each_ref().map(|direction| {
            let (to, from) = (direction.to.len(), direction.from.len());
            let shape = EdgeShape { to, from, channels: 2 * edges.taps, rank };
            Messages { shape, slots: self.edge_slots(samples, &shape) }
        });
        let shape = EdgeShape { channels: edges.taps, ..messages[0].shape };
        let decoded = DecodedEdges {
            slots: self.edge_slots(samples, &shape),
            gates: self.take(shape.to * samples, GATES),
            shape,
        };
        (messages, decoded)
    }

    fn edge_slots(&mut self, samples: usize, shape: &EdgeShape) -> EdgeSlots {
        EdgeSlots {
            edges: self.take(samples, shape.len()),
            to: self.take(shape.to * samples, shape.rank),
            from: self.take(shape.from * samples, shape.channels * shape.rank),
            scratch: self.take(1, shape.scratch_len()),
        }
    }

    fn edge_gradients(
        &mut self,
        samples: usize,
        (messages, decoded): &([Messages; 2], DecodedEdges),
    ) -> EdgeGradients {
        let shape = &decoded.shape;
        EdgeGradients {
            directions: messages.each_ref().map(|m| self.take(samples, m.shape.len())),
            to: self.take(shape.to * samples, shape.rank),
            from: self.take(shape.from * samples, shape.channels * shape.rank),
            gates: self.take(shape.to * samples, GATES),
        }
    }
}

/// Where the next slot begins. What overflows cannot be allocated either: the executor says
/// so.
fn after(end: usize, rows: usize, width: usize) -> usize {
    let size = rows.saturating_mul(width).checked_next_multiple_of(16);
    end.saturating_add(size.unwrap_or(usize::MAX))
}
