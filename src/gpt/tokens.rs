//! Cuts the input of a G.pt into tokens, and joins its output.
//!
//! The input of one sample is one row of values: noised parameters, starting
//! parameters, and the embedded scalars (timestep, difference of metrics and,
//! with absolute conditioning, target and present metric). Every tokenization
//! is the same thing: *classes* of tokens, each with a table of which values
//! of that row go into which token. Tokens of a class share an encoder, as
//! output tokens of a class share a decoder.
//!
//! Output tokens come first, so that the last block can leave out the others.
//!
//! # Source
//! Policies but [`Units`](super::Tokenization::Units): the G.pt code,
//! `build_splits`.

use super::config::{BetweenGroups, ConfigError, ModelConfig, Tokenization};
use crate::layout::{Layout, UnitAxis};

/// Most parameters of a network that can be cut: far more than fit into a sample.
const MOST_PARAMETERS: usize = 1 << 26;
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
            Tokenization::Units => units(config.between_groups, layout, input_len)?,
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
    Tokens { inputs, outputs, positions, input_len }
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
/// A tensor between two groups belongs to the group that produces it.
fn units(
    between: BetweenGroups,
    layout: &Layout,
    input_len: usize,
) -> Result<Tokens, ConfigError> {
    if layout.groups().is_empty() {
        return Err(ConfigError::NoUnitGroups);
    }
    let parameters = layout.num_parameters() as u32;
    let mut groups: Vec<Vec<Unit>> =
        layout.groups().iter().map(|group| vec![Unit::default(); group.units]).collect();
    // Whether a token of another unit holds values in the order of the group.
    let mut indexed = vec![false; groups.len()];
    let mut others: Vec<Vec<Unit>> = Vec::new();
    let (by_index, seen, shared) = match between {
        BetweenGroups::Held => (false, false, false),
        BetweenGroups::HeldIndexed => (true, false, false),
        BetweenGroups::Seen => (false, true, false),
        BetweenGroups::SeenIndexed => (true, true, false),
        BetweenGroups::SharedIndexed => (true, true, true),
    };
    for (index, tensor) in layout.tensors().iter().enumerate() {
        let mut axes: Vec<(usize, &UnitAxis)> = Vec::new();
        for (g, group) in layout.groups().iter().enumerate() {
            axes.extend(group.axes.iter().filter(|axis| axis.tensor == index).map(|axis| (g, axis)));
        }
        axes.sort_by_key(|(_, axis)| !axis.produces);
        let Some((owner, readers)) = axes.split_first() else {
            let values = tensor.range().map(|i| i as u32).collect();
            others.push(vec![Unit { held: values, seen: Vec::new() }]);
            continue;
        };
        let place = |axis: &UnitAxis, i: usize| {
            let stride: usize = tensor.shape[axis.axis + 1..].iter().product();
            i / stride % tensor.shape[axis.axis] / axis.block
        };
        for i in 0..tensor.num_elements() {
            let value = (tensor.offset + i) as u32;
            groups[owner.0][place(owner.1, i)].held.push(value);
            for (group, axis) in readers.iter().filter(|_| seen) {
                groups[*group][place(axis, i)].seen.push(value);
            }
        }
        for (group, _) in readers.iter().filter(|_| by_index) {
            indexed[*group] = true;
            indexed[owner.0] |= seen;
        }
    }
    let classes = groups.into_iter().zip(indexed).filter(|(units, _)| !units[0].held.is_empty());

    let mut tokens =
        Tokens { inputs: Vec::new(), outputs: Vec::new(), positions: Vec::new(), input_len };
    for (class, indexed) in classes.chain(others.into_iter().map(|class| (class, false))) {
        let position = tokens.num_positions() as u32;
        let count = class.len() as u32;
        let step = u32::from(indexed);
        tokens.positions.extend((0..count).map(|unit| position + step * unit));
        let mut table = Vec::new();
        for unit in &class {
            for values in [&unit.held, &unit.seen] {
                table.extend(values);
                table.extend(values.iter().map(|i| i + parameters));
            }
        }
        tokens.inputs.push(InputClass { values: table.len() / class.len(), table, bias: false });
        let table: Vec<u32> = class
            .into_iter()
            .flat_map(|unit| match shared {
                true => [unit.held, unit.seen].concat(),
                false => unit.held,
            })
            .collect();
        tokens.outputs.push(OutputClass { values: table.len() / count as usize, table });
    }
    let scalars: Vec<u32> = (2 * parameters..input_len as u32).collect();
    tokens.positions.push(tokens.num_positions() as u32);
    tokens.inputs.push(InputClass { values: scalars.len(), table: scalars, bias: true });
    Ok(tokens)
}

/// Values of one unit: those that its token holds, and those that it only sees.
#[derive(Clone, Default)]
struct Unit {
    held: Vec<u32>,
    seen: Vec<u32>,
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
