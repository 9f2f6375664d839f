//! Which parameters a transformer has, and where they lie.

use crate::engine::{LayerNorm, Linear};
use crate::gpt::config::{Conditioning, ConfigError, ModelConfig};
use crate::gpt::edges::{Edges, GATES};
use crate::gpt::tokens::Tokens;

/// One trainable tensor of a transformer in the flat vector of all of them.
///
/// The tensors are listed in the order of the reference's state_dict, but lie in
/// memory so that keys, queries and values are one matrix: go by `offset`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Name in the reference's state_dict.
    pub name: String,
    /// Shape, PyTorch's (`Linear` weight: `[out, in]`).
    pub shape: Vec<usize>,
    /// Position of its first value in the flat vector.
    pub offset: usize,
    /// Whether weight decay applies.
    pub decay: bool,
}

impl ParameterSpec {
    /// Number of values.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Positions of its values in the flat vector.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.num_elements()
    }
}

/// What a tensor holds before training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Initial {
    Zero,
    One,
    Normal,
}

/// Where each layer's parameters lie.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// For each input class, the layers of its encoder.
    pub encoders: Vec<Vec<Linear>>,
    /// Projection of the scalars that is added to every token.
    pub conditioning: Option<Linear>,
    pub positions: usize,
    pub norm_in: LayerNorm,
    pub blocks: Vec<BlockPlaces>,
    pub norm_out: LayerNorm,
    /// For each output class, the layers of its decoder.
    pub decoders: Vec<Vec<Linear>>,
    /// For all edges of a tensor, how they are decoded.
    pub edge_decoders: Vec<EdgeDecoder>,
    /// All of the layers above that are linear.
    pub linear: Vec<Linear>,
}

/// How a message is made of its sender's token, and added to that of who gets it.
#[derive(Clone, Debug)]
pub(super) struct Messages {
    pub send: Linear,
    pub receive: Linear,
}

/// How edges are decoded from the tokens at their ends.
#[derive(Clone, Debug)]
pub(super) struct EdgeDecoder {
    /// The factors of what is added, [`Edges::rank`] terms for each weight.
    pub to: Linear,
    pub from: Linear,
    /// How much of a unit's noised and starting weights is added.
    pub gates: Linear,
}

#[derive(Clone, Debug)]
pub(super) struct BlockPlaces {
    pub norm_attention: LayerNorm,
    /// Keys, queries and values as one layer of `3 D` outputs.
    pub qkv: Linear,
    pub projection: Linear,
    /// For all edges of a tensor, messages along them and against them.
    pub messages: Vec<[Messages; 2]>,
    pub norm_mlp: LayerNorm,
    pub expand: Linear,
    pub contract: Linear,
}

/// Lays out all parameters.
pub(super) fn place(
    config: &ModelConfig,
    tokens: &Tokens,
) -> Result<(Places, Vec<ParameterSpec>, Vec<Initial>, usize), ConfigError> {
    let width = config.width;
    let mut list = List::default();
    let positions = {
        let shape = vec![1, tokens.num_positions(), width];
        list.add("decoder.pos_emb".into(), shape, false, Initial::Zero)
    };
    let blocks = (0..config.blocks).map(|i| block(&mut list, i, width, &tokens.edges)).collect();
    let encoders = tokens
        .inputs
        .iter()
        .enumerate()
        .map(|(class, input)| {
            // There is nothing to encode in units that have nothing but edges.
            let depth = if input.values == 0 { 0 } else { config.encoder_depth };
            (0..depth)
                .map(|depth| {
                    let name = format!("decoder.input_parameter_projections.{class}.{}", 2 * depth);
                    let inputs = if depth == 0 { input.values } else { width };
                    let bias = input.bias && depth == 0;
                    list.linear(&name, inputs, width, bias, Initial::Normal)
                })
                .collect()
        })
        .collect();
    let scalars = tokens.inputs.last().filter(|_| config.conditioning == Conditioning::EveryToken);
    let conditioning = scalars.map(|class| {
        list.linear("decoder.conditioning", class.values, width, true, Initial::Normal)
    });
    let norm_in = list.norm("decoder.ln_in", width);
    let norm_out = list.norm("decoder.ln_f", width);
    let decoders = tokens
        .outputs
        .iter()
        .enumerate()
        .map(|(class, output)| {
            let depth = if output.values == 0 { 0 } else { config.decoder_depth };
            (0..depth)
                .map(|depth| {
                    let name =
                        format!("decoder.output_parameter_projections.{class}.{}", 2 * depth);
                    if depth + 1 < config.decoder_depth {
                        list.linear(&name, width, width, false, Initial::Normal)
                    } else {
                        list.linear(&name, width, output.values, false, Initial::Zero)
                    }
                })
                .collect()
        })
        .collect();
    let edge_decoders = tokens
        .edges
        .iter()
        .enumerate()
        .map(|(i, edges)| {
            let mut linear = |end: &str, outputs: usize, initial: Initial| {
                let name = format!("decoder.output_edge_projections.{i}.{end}");
                list.linear(&name, width, outputs, false, initial)
            };
            let rank = edges.rank();
            EdgeDecoder {
                to: linear("to", rank, Initial::Normal),
                from: linear("from", edges.taps * rank, Initial::Zero),
                gates: linear("gates", GATES, Initial::Zero),
            }
        })
        .collect();
    let places = Places {
        encoders,
        conditioning,
        positions,
        norm_in,
        blocks,
        norm_out,
        decoders,
        edge_decoders,
        linear: list.linear,
    };
    // Far above any machine's memory, and far below where offsets overflow.
    let most = 1usize << 40;
    let fits = list.end.is_some_and(|end| end <= most);
    ConfigError::check(fits, "width", &width, &format!("a model of at most {most} parameters"))?;
    Ok((places, list.specs, list.initial, list.end.unwrap_or(0)))
}

fn block(list: &mut List, index: usize, width: usize, edges: &[Edges]) -> BlockPlaces {
    let name = |part: &str| format!("decoder.blocks.{index}.{part}");
    let norm_attention = list.norm(&name("ln1"), width);
    let norm_mlp = list.norm(&name("ln2"), width);
    let qkv = list.fused(&[name("attn.key"), name("attn.query"), name("attn.value")], width, width);
    let normal = Initial::Normal;
    let projection = list.linear(&name("attn.proj"), width, width, true, normal);
    let expand = list.linear(&name("mlp.0"), width, 4 * width, true, normal);
    let contract = list.linear(&name("mlp.2"), 4 * width, width, true, normal);
    let messages = edges.iter().enumerate().map(|(i, edges)| {
        ["along", "against"].map(|way| {
            let name = |part: &str| name(&format!("edges.{i}.{way}.{part}"));
            let (rank, channels) = (edges.rank(), 2 * edges.taps);
            let send = list.linear(&name("send"), width, channels * rank, false, normal);
            let receive = list.linear(&name("receive"), rank, width, false, normal);
            Messages { send, receive }
        })
    });
    let messages = messages.collect();
    BlockPlaces { norm_attention, qkv, projection, messages, norm_mlp, expand, contract }
}

/// Tensors placed so far. `end` is where the next one goes, none after an
/// overflow.
struct List {
    specs: Vec<ParameterSpec>,
    initial: Vec<Initial>,
    linear: Vec<Linear>,
    end: Option<usize>,
}

impl Default for List {
    fn default() -> Self {
        Self { specs: Vec::new(), initial: Vec::new(), linear: Vec::new(), end: Some(0) }
    }
}

impl List {
    fn add(&mut self, name: String, shape: Vec<usize>, decay: bool, initial: Initial) -> usize {
        let offset = self.end.unwrap_or(0);
        let size = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        self.end = self.end.zip(size).and_then(|(end, size)| end.checked_add(size));
        self.specs.push(ParameterSpec { name, shape, offset, decay });
        self.initial.push(initial);
        offset
    }

    fn norm(&mut self, name: &str, width: usize) -> LayerNorm {
        let scale = self.add(format!("{name}.weight"), vec![width], false, Initial::One);
        let shift = self.add(format!("{name}.bias"), vec![width], false, Initial::Zero);
        LayerNorm { scale, shift, width }
    }

    fn linear(
        &mut self,
        name: &str,
        inputs: usize,
        outputs: usize,
        bias: bool,
        initial: Initial,
    ) -> Linear {
        let weight = self.add(format!("{name}.weight"), vec![outputs, inputs], true, initial);
        let bias =
            bias.then(|| self.add(format!("{name}.bias"), vec![outputs], false, Initial::Zero));
        let layer = Linear { weight, bias, inputs, outputs };
        self.linear.push(layer);
        layer
    }

    /// Several layers with one input as one layer: weights side by side, then
    /// biases.
    fn fused(&mut self, names: &[String], inputs: usize, outputs: usize) -> Linear {
        let first = self.specs.len();
        let layers: Vec<Linear> = names
            .iter()
            .map(|name| self.linear(name, inputs, outputs, true, Initial::Normal))
            .collect();
        let start = layers[0].weight;
        let biases = start.saturating_add(names.len().saturating_mul(inputs * outputs));
        for (i, pair) in self.specs[first..].chunks_exact_mut(2).enumerate() {
            pair[0].offset = start.saturating_add(i.saturating_mul(inputs * outputs));
            pair[1].offset = biases.saturating_add(i * outputs);
        }
        let fused =
            Linear { weight: start, bias: Some(biases), inputs, outputs: names.len() * outputs };
        self.linear.truncate(self.linear.len() - names.len());
        self.linear.push(fused);
        fused
    }
}
