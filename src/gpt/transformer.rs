//! The network of G.pt: a transformer over tokens of a parameter vector.
//!
//! ```text
//! tokens of [noised P | start P | embedded scalars]
//!   -> encoders -> LayerNorm -> + position embedding
//!   -> L times: x += attention(LayerNorm(x)) + messages(LayerNorm(x)); x += mlp(LayerNorm(x))
//!   -> LayerNorm -> decoders of the output tokens and edges -> + start
//! ```
//!
//! Only networks with several unit groups have [edges](super::edges), and messages.
//!
//! A [`Transformer`] holds no values: it says which parameters there are, where
//! they lie in one flat vector, and how a pass goes. An
//! [`Executor`](super::Executor) runs it.
//!
//! Shape letters in `gpt`: `N` batch, `P` parameters of the network that is
//! optimised, `T` tokens, `C` values in a token, `D` width, `H` heads, `L` blocks.
//!
//! # Source
//! Peebles et al. 2022, arXiv:2209.12892, and its code (`transformer.py`).

mod arena;
mod edges;
mod parameters;
mod pass;

use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

pub(crate) use self::arena::{Arena, Training};
pub use self::parameters::ParameterSpec;

use self::parameters::{Initial, Places};
use super::config::{ConfigError, ModelConfig};
use super::diffusion::NoiseSchedule;
use super::embedding;
use super::tokens::Tokens;
use super::DIFFUSION_STEPS;
use crate::engine::{Float, Linear};
use crate::layout::Layout;

/// The network of G.pt for one layout.
///
/// # Examples
/// ```
/// use lopt::gpt::{ModelConfig, Transformer};
/// use lopt::layout::LayoutBuilder;
///
/// let mut builder = LayoutBuilder::new();
/// builder.scope("hidden", |b| b.linear(64, 10, true));
/// builder.scope("output", |b| b.linear(10, 10, true));
/// let model = Transformer::new(ModelConfig::default(), &builder.finish()?)?;
///
/// assert_eq!(model.num_tokens(), 12, "ten units, the output bias, the scalars");
/// let parameters: Vec<f32> = model.initialize(0);
/// assert_eq!(parameters.len(), model.num_parameters());
/// # Ok::<(), lopt::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Transformer {
    config: ModelConfig,
    layout: Layout,
    tokens: Tokens,
    specs: Vec<ParameterSpec>,
    initial: Vec<Initial>,
    places: Places,
    num_parameters: usize,
    frequencies: Vec<f32>,
    /// What noised parameters are multiplied by at every timestep.
    signal: Vec<f64>,
}

impl Transformer {
    /// Plans the network.
    ///
    /// # Errors
    /// If the configuration is not valid, does not fit the layout, or asks for
    /// more than can be addressed.
    pub fn new(config: ModelConfig, layout: &Layout) -> Result<Self, ConfigError> {
        config.validate()?;
        let limit = |field, found: usize, most: usize| {
            ConfigError::check(found <= most, field, &found, &format!("at most {most}"))
        };
        limit("width", config.width, 1 << 16)?;
        limit("blocks", config.blocks, 1 << 12)?;
        limit("encoder_depth", config.encoder_depth, 1 << 6)?;
        limit("decoder_depth", config.decoder_depth, 1 << 6)?;
        limit("frequencies", config.frequencies, 1 << 16)?;
        let tokens = Tokens::new(&config, layout)?;
        let (places, specs, initial, num_parameters) = parameters::place(&config, &tokens)?;
        let frequencies = embedding::frequencies(config.frequencies, config.max_frequency_log2);
        let schedule = NoiseSchedule::linear(DIFFUSION_STEPS)?;
        let scale = |t| if config.signal_scaling { schedule.alpha_bar(t).sqrt() } else { 1.0 };
        let signal = (0..schedule.len()).map(scale).collect();
        Ok(Self {
            config,
            layout: layout.clone(),
            tokens,
            specs,
            initial,
            places,
            num_parameters,
            frequencies,
            signal,
        })
    }

    /// What noised parameters are multiplied by at a timestep.
    pub(crate) fn signal_scale(&self, timestep: f64) -> f64 {
        let index = (timestep.max(0.0) as usize).min(self.signal.len() - 1);
        self.signal[index]
    }

    /// Shape of the network.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Layout of the networks that it optimises.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Every trainable tensor, in the order of the reference's state_dict.
    pub fn parameters(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// Length of the flat vector of all trainable tensors.
    pub fn num_parameters(&self) -> usize {
        self.num_parameters
    }

    /// Number of tokens of a sample.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Number of tokens that are decoded, the first ones.
    pub fn num_outputs(&self) -> usize {
        self.tokens.num_outputs()
    }

    /// Positions of the parameters that weight decay applies to (weights of
    /// linear layers), ascending and disjoint.
    pub fn decayed(&self) -> Vec<std::ops::Range<usize>> {
        let mut ranges: Vec<_> =
            self.specs.iter().filter(|spec| spec.decay).map(ParameterSpec::range).collect();
        ranges.sort_by_key(|range| range.start);
        ranges.dedup_by(|next, range| {
            let adjacent = range.end == next.start;
            if adjacent {
                range.end = next.end;
            }
            adjacent
        });
        ranges
    }

    /// Where the linear layers lie in the parameters.
    pub(crate) fn linear_layers(&self) -> &[Linear] {
        &self.places.linear
    }

    /// Frequencies of the scalar embedding.
    pub fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// The same network with frequencies that were stored with its weights.
    ///
    /// # Errors
    /// If their number is not the configuration's.
    pub fn with_frequencies(mut self, frequencies: Vec<f32>) -> Result<Self, ConfigError> {
        let expected = self.config.frequencies;
        let found = frequencies.len();
        ConfigError::check(found == expected, "frequencies", &found, &expected)?;
        self.frequencies = frequencies;
        Ok(self)
    }

    /// Fresh parameters: weights from a normal distribution of deviation 0.02,
    /// biases and position embedding zero, and the last layer of every decoder
    /// zero, so that the network returns the starting parameters.
    pub fn initialize<F: Float>(&self, seed: u64) -> Vec<F> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut parameters = vec![F::zero(); self.num_parameters];
        for (spec, initial) in self.specs.iter().zip(&self.initial) {
            for value in &mut parameters[spec.range()] {
                *value = match initial {
                    Initial::Zero => F::zero(),
                    Initial::One => F::one(),
                    Initial::Normal => {
                        let normal: f64 = StandardNormal.sample(&mut rng);
                        F::from_f64(0.02 * normal)
                    }
                };
            }
        }
        parameters
    }
}

#[cfg(test)]
mod tests;
