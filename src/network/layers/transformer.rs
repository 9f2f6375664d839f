//! [`Layer`] for dfdx's attention and transformers.
//!
//! Shape letters: `M` units of the model, `H` heads, `K` keys, `V` values, `F`
//! hidden units.

use dfdx::nn::{builders, modules};
use dfdx::shapes::Dtype;
use dfdx::tensor::Storage;

use super::super::Layer;
use super::layer;
use crate::layout::{Flow, LayoutBuilder};

const fn attention(m: usize, k: usize, v: usize) -> usize {
    2 * (m * k + k) + m * v + v + v * m + m
}

const fn feed_forward(m: usize, f: usize) -> usize {
    m * f + f + f * m + m
}

const fn encoder_block(m: usize, f: usize) -> usize {
    attention(m, m, m) + feed_forward(m, f) + 2 * 2 * m
}

const fn decoder_block(m: usize, f: usize) -> usize {
    2 * attention(m, m, m) + feed_forward(m, f) + 3 * 2 * m
}

layer!(
    [const M: usize, const H: usize, const K: usize, const V: usize,]
    builders::MultiHeadAttention<M, H, K, V>,
    [E: Dtype, D: Storage<E>] modules::MultiHeadAttention<M, H, K, V, E, D>,
    attention(M, K, V),
    |layout| layout.attention("MultiHeadAttention", M, H, K, V)
);
layer!(
    [const M: usize, const H: usize, const F: usize,] builders::TransformerEncoderBlock<M, H, F>,
    [E: Dtype, D: Storage<E>] modules::TransformerEncoderBlock<M, H, F, E, D>,
    encoder_block(M, F),
    describe_encoder_block::<M, H, F>
);
layer!(
    [const M: usize, const H: usize, const F: usize,] builders::TransformerDecoderBlock<M, H, F>,
    [E: Dtype, D: Storage<E>] modules::TransformerDecoderBlock<M, H, F, E, D>,
    decoder_block(M, F),
    |layout| {
        let parts = layout.parts(2);
        describe_decoder_block::<M, H, F>(layout, &parts[0], &parts[1]);
    }
);
// It builds a `Repeated`.
layer!(
    [const M: usize, const H: usize, const F: usize, const L: usize]
    builders::TransformerEncoder<M, H, F, L>,
    L * encoder_block(M, F),
    modules::Repeated::<builders::TransformerEncoderBlock<M, H, F>, L>::describe
);
layer!(
    [const M: usize, const H: usize, const F: usize, const L: usize,]
    builders::TransformerDecoder<M, H, F, L>,
    [E: Dtype, D: Storage<E>] modules::TransformerDecoder<M, H, F, L, E, D>,
    L * decoder_block(M, F),
    |layout| {
        let parts = layout.parts(2);
        describe_decoder::<M, H, F, L>(layout, &parts[0], &parts[1]);
    }
);
layer!(
    [const M: usize, const H: usize, const A: usize, const B: usize, const F: usize,]
    builders::Transformer<M, H, A, B, F>,
    [E: Dtype, D: Storage<E>] modules::Transformer<M, H, A, B, F, E, D>,
    A * encoder_block(M, F) + B * decoder_block(M, F),
    |layout| {
        let parts = layout.parts(2);
        layout.side_by_side(&[&parts[0]]);
        layout.scope("encoder", builders::TransformerEncoder::<M, H, F, A>::describe);
        let memory = layout.flow();
        layout.scope("decoder", |layout| {
            describe_decoder::<M, H, F, B>(layout, &parts[1], &memory);
        });
    }
);

fn describe_encoder_block<const M: usize, const H: usize, const F: usize>(
    layout: &mut LayoutBuilder,
) {
    layout.layer("TransformerEncoderBlock");
    layout.residual(|layout| layout.scope("self_attn", Attention::<M, H>::describe));
    layout.scope("norm1", builders::LayerNorm1D::<M>::describe);
    layout.scope("ff", FeedForward::<M, F>::describe);
    layout.scope("norm2", builders::LayerNorm1D::<M>::describe);
}

fn describe_decoder_block<const M: usize, const H: usize, const F: usize>(
    layout: &mut LayoutBuilder,
    target: &Flow,
    memory: &Flow,
) {
    layout.layer("TransformerDecoderBlock");
    layout.side_by_side(&[target]);
    layout.residual(|layout| layout.scope("self_attn", Attention::<M, H>::describe));
    layout.scope("norm1", builders::LayerNorm1D::<M>::describe);
    layout.residual(|layout| {
        layout.side_by_side(&[&layout.flow(), memory, memory]);
        layout.scope("mh_attn", Attention::<M, H>::describe);
    });
    layout.scope("norm2", builders::LayerNorm1D::<M>::describe);
    layout.scope("ff", FeedForward::<M, F>::describe);
    layout.scope("norm3", builders::LayerNorm1D::<M>::describe);
}

fn describe_decoder<const M: usize, const H: usize, const F: usize, const L: usize>(
    layout: &mut LayoutBuilder,
    target: &Flow,
    memory: &Flow,
) {
    let mut target = target.clone();
    layout.scope("0", |layout| {
        for index in 0..L {
            layout.scope(&index.to_string(), |layout| {
                describe_decoder_block::<M, H, F>(layout, &target, memory);
            });
            target = layout.flow();
        }
    });
    layout.side_by_side(&[&target]);
}

type Attention<const M: usize, const H: usize> = builders::MultiHeadAttention<M, H, M, M>;

type FeedForward<const M: usize, const F: usize> =
    modules::Residual<(builders::Linear<M, F>, builders::ReLU, builders::Linear<F, M>)>;
