//! Cuts the input of a G.pt into tokens, and joins its output.
//!
//! The input of one sample is one row of values: noised parameters, starting
//! parameters, the embedded scalars (timestep, difference of metrics and, with
//! absolute conditioning, target and present metric), and for networks with
//! several unit groups the products along [`Paths`]. Every tokenization
//! is the same thing: *classes* of tokens, each with a table of which values
//! of that row go into which token. Tokens of a class share an encoder, as
//! output tokens of a class share a decoder.
//!
//! Output tokens come first, so that the last block can leave out the others.
//!
//! # Source
//! Policies but [`Units`](super::Tokenization::Units): the G.pt code,
//! `build_splits`.

use super::config::{ConfigError, ModelConfig, Tokenization};
use super::paths::{unit_of, Paths};
use crate::layout::Layout;

/// Most parameters of a network that can be cut: far more than fit into a sample.
pub(super) const MOST_PARAMETERS: usize = 1 << 26;
/// Most tokens, but for the last pieces of tensors: attention needs their square.
const MOST_TOKENS: usize = 1 << 16;

/// Tokens that share an encoder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct InputClass {
    /// Number of values in a token, `C`.
    pub values: usize,
    /// Position in the input row of every value, token by token.
    pub table: Vec<u32>,
    /// Whether the first linear layer of the encoder has a bias.
    pub bias: bool,
}

/// Tokens that share a decoder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OutputClass {
    /// Number of values in a token, `C`.
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
    /// What the end of the input row holds, if anything.
    pub paths: Option<Paths>,
}

impl InputClass {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.table.len() / self.values
    }
}

impl OutputClass {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.table.len() / self.values
    }
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
            Tokenization::Units => units(config.paths, layout, input_len)?,
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
        self.outputs.iter().map(OutputClass::tokens).sum()
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
        .map(|piece| InputClass { values: piece.len(), table: piece.collect(), bias: false })
        .collect();
    let outputs = pieces(vector, length)
        .map(|piece| OutputClass { values: piece.len(), table: piece.collect() })
        .collect();
    let positions = (0..inputs.len() as u32).collect();
    Tokens { inputs, outputs, positions, input_len, paths: None }
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
/// the unit; one for every tensor that is attached to none; one for all scalars.
///
/// A tensor between two groups belongs to the group that produces it. What its
/// units are to the other group, and the other way round, is what [`Paths`] tell.
fn units(with_paths: bool, layout: &Layout, input_len: usize) -> Result<Tokens, ConfigError> {
    if layout.groups().is_empty() {
        return Err(ConfigError::NoUnitGroups);
    }
    let parameters = layout.num_parameters() as u32;
    let mut groups: Vec<Vec<Unit>> =
        layout.groups().iter().map(|group| vec![Unit::default(); group.units]).collect();
    let mut others: Vec<Vec<Unit>> = Vec::new();
    for (index, tensor) in layout.tensors().iter().enumerate() {
        let axes = || {
            let groups = layout.groups().iter().enumerate();
            groups.flat_map(|(g, group)| group.axes.iter().map(move |axis| (g, axis)))
        };
        let own = |produces| {
            move |(_, axis): &(usize, &crate::layout::UnitAxis)| {
                axis.tensor == index && axis.produces == produces
            }
        };
        let owner = axes().find(own(true)).or_else(|| axes().find(own(false)));
        let Some((group, axis)) = owner else {
            let values = tensor.range().map(|i| i as u32).collect();
            others.push(vec![Unit { values, ..Unit::default() }]);
            continue;
        };
        for i in 0..tensor.num_elements() {
            groups[group][unit_of(tensor, axis, i)].values.push((tensor.offset + i) as u32);
        }
    }
    let paths = if with_paths { Paths::new(layout)? } else { None };
    let row_len = input_len + paths.as_ref().map_or(0, Paths::len);
    for (group, span) in paths.iter().flat_map(Paths::spans) {
        for (unit, token) in groups[*group].iter_mut().enumerate() {
            token.paths.extend(span.unit(unit).map(|i| (input_len + i) as u32));
        }
    }
    groups.retain(|group| !group[0].values.is_empty());

    let (mut inputs, mut outputs, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    for class in groups.into_iter().chain(others) {
        let position = inputs.len() as u32;
        positions.extend(std::iter::repeat_n(position, class.len()));
        let mut table = Vec::new();
        for unit in &class {
            table.extend(&unit.values);
            table.extend(unit.values.iter().map(|i| i + parameters));
            table.extend(&unit.paths);
        }
        inputs.push(InputClass { values: table.len() / class.len(), table, bias: false });
        let table = class.iter().flat_map(|unit| &unit.values).copied().collect();
        outputs.push(OutputClass { values: class[0].values.len(), table });
    }
    let scalars: Vec<u32> = (2 * parameters..input_len as u32).collect();
    positions.push(inputs.len() as u32);
    inputs.push(InputClass { values: scalars.len(), table: scalars, bias: true });
    Ok(Tokens { inputs, outputs, positions, input_len: row_len, paths })
}

/// What the token of a unit holds.
#[derive(Clone, Default)]
struct Unit {
    /// Positions in the flat vector of what is attached to the unit.
    values: Vec<u32>,
    /// Positions in the input row of its products along paths.
    paths: Vec<u32>,
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
                count(tokens.outputs.iter().map(|c| &c.table).collect(), layout.num_parameters());
                count(tokens.inputs.iter().map(|c| &c.table).collect(), tokens.input_len);
                let inputs: usize = tokens.inputs.iter().map(InputClass::tokens).sum();
                assert_eq!(inputs, tokens.len());
            }
        }
    }

    #[test]
    fn a_weight_between_two_groups_belongs_to_the_one_that_produces_it() {
        let tokens = Tokens::new(&config(Tokenization::Units), &mlp(&[2, 3, 4, 1])).unwrap();
        let values: Vec<usize> = tokens.outputs.iter().map(|c| c.values).collect();
        assert_eq!(values, [2 + 1, 3 + 1 + 1, 1]);
    }

    #[test]
    fn tokens_have_the_paths_of_their_units() {
        let config = ModelConfig { paths: true, ..config(Tokenization::Units) };
        let layout = mlp(&[2, 3, 4, 1]);
        let tokens = Tokens::new(&config, &layout).unwrap();
        let plain = Tokens::new(&ModelConfig { paths: false, ..config }, &layout).unwrap();
        // To one output for the first group, from two inputs for the second.
        let values = |tokens: &Tokens| tokens.inputs.iter().map(|c| c.values).collect::<Vec<_>>();
        assert_eq!(values(&plain), [2 * 3, 2 * 5, 2, 20]);
        assert_eq!(values(&tokens), [2 * 3 + 1, 2 * 5 + 2, 2, 20]);
        assert_eq!(tokens.outputs, plain.outputs);
        assert_eq!(tokens.positions, plain.positions);
        let mut read: Vec<u32> = tokens.inputs.iter().flat_map(|c| c.table.clone()).collect();
        read.sort_unstable();
        read.dedup();
        assert!(read.iter().all(|&i| (i as usize) < tokens.input_len));
        assert_eq!(read.iter().filter(|&&i| i as usize >= plain.input_len).count(), 3 + 4 * 2);

        let one = Tokens::new(&config, &mlp(&[2, 3, 1])).unwrap();
        assert_eq!(
            one,
            Tokens::new(&ModelConfig { paths: false, ..config }, &mlp(&[2, 3, 1])).unwrap()
        );
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
        let outputs: Vec<usize> = tokens.outputs.iter().map(|c| c.values).collect();
        assert_eq!(outputs, [9 + 1, 16 * 9 + 1 + 10, 10]);
        let inputs: Vec<usize> = tokens.inputs.iter().map(|c| c.values).collect();
        assert_eq!(inputs[..3], [2 * 10 + 10, 2 * 155 + 9, 20]);
        assert_eq!(tokens.len(), 16 + 32 + 2);
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
