//! Cuts the input of a G.pt into tokens, and joins its output.
//!
//! The input of one sample is one row of values: noised parameters, starting
//! parameters, the embedded scalars (timestep, difference of metrics and, with
//! absolute conditioning, target and present metric). Every tokenization
//! is the same thing: *classes* of tokens, each with a table of which values
//! of that row go into which token. Tokens of a class share an encoder, as
//! output tokens of a class share a decoder. Weights between the units of two groups are
//! [`Edges`] between their tokens.
//!
//! Output tokens come first, so that the last block can leave out the others.
//!
//! # Source
//! Policies but [`Units`](super::Tokenization::Units): the G.pt code,
//! `build_splits`.

use super::config::{ConfigError, ModelConfig, Tokenization};
use super::edges::{unit_of, Edges};
use crate::layout::Layout;

/// Most parameters of a network that can be cut: far more than fit into a sample.
pub(super) const MOST_PARAMETERS: usize = 1 << 26;
/// Most tokens, but for the last pieces of tensors: attention needs their square.
const MOST_TOKENS: usize = 1 << 16;

/// Tokens that share an encoder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct InputClass {
    /// Number of tokens.
    pub tokens: usize,
    /// Number of values in a token, `C`; none of units that have nothing but edges.
    pub values: usize,
    /// Position in the input row of every value, token by token.
    pub table: Vec<u32>,
    /// Whether the first linear layer of the encoder has a bias.
    pub bias: bool,
}

/// Tokens that share a decoder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OutputClass {
    /// Number of tokens.
    pub tokens: usize,
    /// Number of values in a token, `C`; none of units that have nothing but edges.
    pub values: usize,
    /// Position in the flat parameter vector of every value, token by token.
    pub table: Vec<u32>,
}

/// A tokenization of one layout.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tokens {
    /// Input classes in the order of their tokens.
    pub inputs: Vec<InputClass>,
    /// Output classes in the order of their tokens: the first tokens of all.
    pub outputs: Vec<OutputClass>,
    /// Row of the position embedding of every token.
    pub positions: Vec<u32>,
    /// Length of the input row.
    pub input_len: usize,
    /// Weights between the units of two groups.
    pub edges: Vec<Edges>,
}

impl Tokens {
    /// Cuts a layout as the configuration says.
    ///
    /// # Errors
    /// If there is nothing to cut, or more than [`MOST_PARAMETERS`] or [`MOST_TOKENS`].
    pub fn new(config: &ModelConfig, layout: &Layout) -> Result<Self, ConfigError> {
        let parameters = layout.num_parameters();
        let scalars = if config.absolute_conditioning { 4 } else { 2 };
        let embedding = 2 * config.frequencies + 1;
        let input_len =
            parameters.checked_mul(2).and_then(|n| n.checked_add(embedding.checked_mul(scalars)?));
        let fits = (1..=MOST_PARAMETERS).contains(&parameters);
        let (Some(input_len), true) = (input_len, fits) else {
            return Err(ConfigError::Field {
                field: "layout",
                found: format!("{parameters} parameters"),
                expected: format!("1 to {MOST_PARAMETERS} parameters"),
            });
        };
        // Before anything is allocated: layout and policy may come from a file.
        let least = match config.tokenization {
            Tokenization::Units => {
                let units = layout.groups().iter().map(|group| group.units);
                units.fold(0usize, usize::saturating_add)
            }
            Tokenization::LayerByLayer => 2 * layout.tensors().len(),
            Tokenization::Chunk { length }
            | Tokenization::ChunkWithinLayer { length }
            | Tokenization::ChunkWithinInput { length } => 2 * parameters / length,
        };
        let expected = format!("a tokenization into at most {MOST_TOKENS} tokens");
        ConfigError::check(least <= MOST_TOKENS, "tokens", &least, &expected)?;
        let tokens = match config.tokenization {
            Tokenization::Units => units(layout, input_len)?,
            policy => reference(policy, layout, scalars, embedding, input_len),
        };
        Ok(tokens)
    }

    /// Number of tokens, `T`.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Number of tokens that are decoded.
    pub fn num_outputs(&self) -> usize {
        self.outputs.iter().map(|class| class.tokens).sum()
    }

    /// Rows of the position embedding.
    pub fn num_positions(&self) -> usize {
        self.positions.last().map_or(0, |&last| last as usize + 1)
    }
}

/// The reference's policies: consecutive pieces, each with an encoder or
/// decoder and a position of its own.
fn reference(
    policy: Tokenization,
    layout: &Layout,
    scalars: usize,
    embedding: usize,
    input_len: usize,
) -> Tokens {
    let parameters = layout.num_parameters();
    let tensors: Vec<usize> = layout.tensors().iter().map(|t| t.num_elements()).collect();
    let vector: &[usize] = match policy {
        Tokenization::LayerByLayer | Tokenization::ChunkWithinLayer { .. } => &tensors,
        _ => &[parameters],
    };
    let whole = [input_len];
    let mut boundaries = [vector, vector].concat();
    boundaries.extend(std::iter::repeat_n(embedding, scalars));
    let boundaries = match policy {
        Tokenization::Chunk { .. } => &whole[..],
        _ => &boundaries[..],
    };
    let length = match policy {
        Tokenization::Chunk { length }
        | Tokenization::ChunkWithinLayer { length }
        | Tokenization::ChunkWithinInput { length } => length,
        Tokenization::LayerByLayer | Tokenization::Units => usize::MAX,
    };
    let inputs: Vec<_> = pieces(boundaries, length)
        .map(|piece| InputClass {
            tokens: 1,
            values: piece.len(),
            table: piece.collect(),
            bias: false,
        })
        .collect();
    let outputs = pieces(vector, length)
        .map(|piece| OutputClass { tokens: 1, values: piece.len(), table: piece.collect() })
        .collect();
    let positions = (0..inputs.len() as u32).collect();
    Tokens { inputs, outputs, positions, input_len, edges: Vec::new() }
}

/// Pieces of at most `length` of parts that follow each other.
fn pieces(parts: &[usize], length: usize) -> impl Iterator<Item = std::ops::Range<u32>> + '_ {
    let mut start = 0;
    parts.iter().flat_map(move |&part| {
        let first = start;
        start += part;
        (0..part.div_ceil(length)).map(move |i| {
            let offset = i * length;
            let end = part.min(offset.saturating_add(length));
            (first + offset) as u32..(first + end) as u32
        })
    })
}

/// One token for every unit of every group, with everything that is attached to
/// the unit alone; one for every tensor that is attached to none; one for all
/// scalars. What is attached to two units is an edge between them.
fn units(layout: &Layout, input_len: usize) -> Result<Tokens, ConfigError> {
    if layout.groups().is_empty() {
        return Err(ConfigError::NoUnitGroups);
    }
    let parameters = layout.num_parameters() as u32;
    let mut classes: Vec<Vec<Vec<u32>>> =
        layout.groups().iter().map(|group| vec![Vec::new(); group.units]).collect();
    let first = |group: usize| layout.groups()[..group].iter().map(|group| group.units).sum();
    let mut edges = Vec::new();
    for (index, tensor) in layout.tensors().iter().enumerate() {
        let attached = |produces: bool| {
            let mut axes = layout.groups().iter().enumerate().flat_map(|(g, group)| {
                let tokens = first(g)..first(g) + group.units;
                group.axes.iter().map(move |axis| (g, axis, tokens.clone()))
            });
            axes.find(|(_, axis, _)| axis.tensor == index && axis.produces == produces)
        };
        match (attached(true), attached(false)) {
            (Some((_, row, to)), Some((_, column, from))) => {
                edges.push(Edges::new(tensor, (row, to), (column, from), layout.num_parameters()));
            }
            (Some((group, axis, _)), None) | (None, Some((group, axis, _))) => {
                for i in 0..tensor.num_elements() {
                    let unit = unit_of(tensor, axis, i);
                    classes[group][unit].push((tensor.offset + i) as u32);
                }
            }
            (None, None) => classes.push(vec![tensor.range().map(|i| i as u32).collect()]),
        }
    }

    let (mut inputs, mut outputs, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    for class in classes {
        let position = inputs.len() as u32;
        positions.extend(std::iter::repeat_n(position, class.len()));
        let values = class[0].len();
        let mut table = Vec::new();
        for unit in &class {
            table.extend(unit);
            table.extend(unit.iter().map(|i| i + parameters));
        }
        inputs.push(InputClass { tokens: class.len(), values: 2 * values, table, bias: false });
        outputs.push(OutputClass { tokens: class.len(), values, table: class.concat() });
    }
    let scalars: Vec<u32> = (2 * parameters..input_len as u32).collect();
    positions.push(inputs.len() as u32);
    inputs.push(InputClass { tokens: 1, values: scalars.len(), table: scalars, bias: true });
    Ok(Tokens { inputs, outputs, positions, input_len, edges })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{LayoutBuilder, Role};

    fn mlp(sizes: &[usize]) -> Layout {
        let mut builder = LayoutBuilder::new();
        for (i, pair) in sizes.windows(2).enumerate() {
            builder.scope(&format!("fc{i}"), |b| b.linear(pair[0], pair[1], true));
        }
        builder.finish().unwrap()
    }

    fn config(tokenization: Tokenization) -> ModelConfig {
        ModelConfig { frequencies: 2, ..ModelConfig::reference(tokenization) }
    }

    fn sizes(tokens: &Tokens) -> (Vec<usize>, Vec<usize>) {
        let inputs = tokens.inputs.iter().map(|class| class.values).collect();
        (inputs, tokens.outputs.iter().map(|class| class.values).collect())
    }

    #[test]
    fn reference_policies_cut_where_the_reference_does() {
        let layout = mlp(&[2, 3, 1]); // 6, 3, 3, 1; embeddings of 5, four of them
        let cut = |policy| sizes(&Tokens::new(&config(policy), &layout).unwrap());
        let (inputs, outputs) = cut(Tokenization::Chunk { length: 10 });
        assert_eq!((inputs, outputs), (vec![10, 10, 10, 10, 6], vec![10, 3]));
        let (inputs, outputs) = cut(Tokenization::ChunkWithinInput { length: 10 });
        assert_eq!((inputs, outputs), (vec![10, 3, 10, 3, 5, 5, 5, 5], vec![10, 3]));
        let (inputs, outputs) = cut(Tokenization::ChunkWithinLayer { length: 4 });
        let layers = vec![4, 2, 3, 3, 1];
        let scalars = [4, 1].repeat(4);
        assert_eq!((inputs, outputs), ([&layers[..], &layers, &scalars].concat(), layers));
        let (inputs, outputs) = cut(Tokenization::LayerByLayer);
        assert_eq!((inputs, outputs), (vec![6, 3, 3, 1, 6, 3, 3, 1, 5, 5, 5, 5], vec![6, 3, 3, 1]));
    }

    #[test]
    fn a_unit_has_its_row_bias_and_column_of_both_vectors() {
        let tokens = Tokens::new(&config(Tokenization::Units), &mlp(&[2, 3, 2])).unwrap();
        // 0..6 rows, 6..9 bias, 9..15 columns, 15..17 output bias; 17 parameters
        let first = [0, 1, 6, 9, 12];
        assert_eq!(tokens.outputs[0].table[..5], first);
        assert_eq!(tokens.inputs[0].table[..5], first);
        assert_eq!(tokens.inputs[0].table[5..10], first.map(|i| i + 17));
        assert_eq!(tokens.outputs[1].table, [15, 16]);
        assert_eq!(tokens.inputs[2].table, (34..54).collect::<Vec<_>>());
        assert_eq!(tokens.positions, [0, 0, 0, 1, 2]);
        assert_eq!((tokens.len(), tokens.num_outputs(), tokens.num_positions()), (5, 4, 3));
    }

    #[test]
    fn every_parameter_is_decoded_once_and_read_twice() {
        let mut conv = LayoutBuilder::new();
        conv.tensor("scale", &[3], Role::Scale);
        conv.scope("a", |b| b.linear(4, 6, false));
        conv.scope("norm", |b| b.norm("LayerNorm1D", 6));
        conv.scope("b", |b| b.linear(12, 5, true)); // two values for each unit
        conv.scope("c", |b| b.linear(5, 2, true));
        let length = 7;
        for layout in [mlp(&[3, 4, 5, 2]), conv.finish().unwrap()] {
            for policy in [
                Tokenization::Units,
                Tokenization::LayerByLayer,
                Tokenization::Chunk { length },
                Tokenization::ChunkWithinLayer { length },
                Tokenization::ChunkWithinInput { length },
            ] {
                let tokens = Tokens::new(&config(policy), &layout).unwrap();
                let count = |tables: Vec<&Vec<u32>>, expected: usize| {
                    let mut all: Vec<u32> = tables.into_iter().flatten().copied().collect();
                    all.sort_unstable();
                    assert_eq!(all, (0..expected as u32).collect::<Vec<_>>(), "{policy:?}");
                };
                let (inputs, outputs) = (tokens.inputs.iter(), tokens.outputs.iter());
                let decoded = outputs.map(|c| &c.table);
                let edges = tokens.edges.iter().map(|edges| &edges.table);
                count(decoded.chain(edges).collect(), layout.num_parameters());
                for way in 0..2 {
                    let edges = tokens.edges.iter().map(|e| &e.directions[way].table);
                    count(
                        inputs.clone().map(|c| &c.table).chain(edges).collect(),
                        tokens.input_len,
                    );
                }
                let inputs: usize = inputs.map(|class| class.tokens).sum();
                assert_eq!(inputs, tokens.len());
            }
        }
    }

    #[test]
    fn a_weight_between_two_groups_is_an_edge() {
        let tokens = Tokens::new(&config(Tokenization::Units), &mlp(&[2, 3, 4, 1])).unwrap();
        // A row and a bias; a bias and a column; the bias of the output.
        assert_eq!(sizes(&tokens).1, [2 + 1, 1 + 1, 1]);
        let [edges] = &tokens.edges[..] else { panic!("{:?}", tokens.edges) };
        let along = &edges.directions[0];
        assert_eq!((along.to.clone(), along.from.clone(), edges.taps), (3..7, 0..3, 1));
        assert_eq!(edges.table, (9..21).collect::<Vec<_>>());
        let one = Tokens::new(&config(Tokenization::Units), &mlp(&[2, 3, 1])).unwrap();
        assert!(one.edges.is_empty());
    }

    #[test]
    fn a_unit_may_have_nothing_but_edges() {
        let mut builder = LayoutBuilder::new();
        builder.scope("a", |b| b.linear(2, 3, true));
        builder.scope("b", |b| b.linear(3, 4, false));
        builder.scope("c", |b| b.linear(4, 5, false));
        builder.scope("d", |b| b.linear(5, 1, false));
        let tokens = Tokens::new(&config(Tokenization::Units), &builder.finish().unwrap()).unwrap();
        assert_eq!(sizes(&tokens).1, [3, 0, 1]);
        assert_eq!((tokens.len(), tokens.edges.len()), (3 + 4 + 5 + 1, 2));
    }

    #[test]
    fn a_convolutional_network_has_a_token_for_each_channel() {
        let mut builder = LayoutBuilder::new();
        builder.scope("a", |b| b.conv2d("Conv2D<3, 2>", 1, 16, 3, 1, true));
        builder.unitwise("ReLU");
        builder.scope("b", |b| b.conv2d("Conv2D<3>", 16, 32, 3, 1, true));
        builder.pool_global("AvgPoolGlobal", true);
        builder.scope("c", |b| b.linear(32, 10, true));
        let tokens = Tokens::new(&ModelConfig::default(), &builder.finish().unwrap()).unwrap();
        assert_eq!(sizes(&tokens).1, [9 + 1, 1 + 10, 10]);
        assert_eq!(tokens.len(), 16 + 32 + 2);
        assert_eq!((tokens.edges[0].taps, tokens.edges[0].table.len()), (9, 16 * 32 * 9));
    }

    #[test]
    fn what_no_memory_is_enough_for_is_refused_before_it_is_cut() {
        let long = mlp(&[1 << 18, 8, 2]);
        for (policy, layout) in [
            (Tokenization::Units, mlp(&[2, 1 << 20, 2])),
            (Tokenization::Units, mlp(&[1 << 30, 1 << 20, 2])),
            (Tokenization::Chunk { length: 1 }, long.clone()),
            (Tokenization::ChunkWithinLayer { length: 1 }, long.clone()),
            (Tokenization::ChunkWithinInput { length: 1 }, long.clone()),
            (Tokenization::LayerByLayer, mlp(&[1 << 30, 1 << 20, 2])),
        ] {
            let found = Tokens::new(&config(policy), &layout);
            assert!(matches!(found, Err(ConfigError::Field { .. })), "{policy:?}");
        }
        assert!(Tokens::new(&config(Tokenization::Units), &long).is_ok());
    }

    #[test]
    fn units_need_a_group() {
        let mut builder = LayoutBuilder::new();
        builder.tensor("weight", &[4], Role::Weight);
        let layout = builder.finish().unwrap();
        let found = Tokens::new(&config(Tokenization::Units), &layout);
        assert_eq!(found, Err(ConfigError::NoUnitGroups));
    }
}
