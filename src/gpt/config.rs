//! What a G.pt is made of, and how it is trained and sampled.

use serde::{Deserialize, Serialize};

use crate::metric::MetricKind;

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A field is outside its range.
    #[error("`{field}` is {found}, expected {expected}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// The configuration does not fit the network.
    #[error("tokenization `units` needs at least one unit group, the layout has none: use `chunk_within_layer`")]
    NoUnitGroups,
}

impl ConfigError {
    /// Checks one field.
    pub(crate) fn check(
        ok: bool,
        field: &'static str,
        found: &dyn std::fmt::Display,
        expected: &dyn std::fmt::Display,
    ) -> Result<(), Self> {
        if ok {
            Ok(())
        } else {
            Err(Self::Field { field, found: found.to_string(), expected: expected.to_string() })
        }
    }
}

/// How parameters are cut into tokens.
///
/// # Source
/// The first four: the G.pt code, `build_splits`. `Units` is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "snake_case")]
pub enum Tokenization {
    /// The whole input, scalars included, in pieces of `length`.
    Chunk {
        /// Values in a token.
        length: usize,
    },
    /// One token for each tensor, and for each scalar.
    LayerByLayer,
    /// Pieces of at most `length` that never cross a tensor boundary.
    ChunkWithinLayer {
        /// Values in a token.
        length: usize,
    },
    /// Pieces of at most `length` that never cross the boundary of a flat vector.
    ChunkWithinInput {
        /// Values in a token.
        length: usize,
    },
    /// One token for each unit of each unit group, with everything attached to
    /// it alone, of both vectors at once. A weight between two units is an edge between
    /// their tokens: messages go along it, and it is decoded from both. Equivariant to
    /// reordering the units of every group.
    Units,
}

/// What the network predicts at a diffusion step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The clean parameters, `x_0`.
    #[default]
    Start,
    /// The noise, `ε`.
    Noise,
}

/// How the conditioning scalars reach the tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conditioning {
    /// As tokens of their own, which the others attend to; as the reference.
    OwnTokens,
    /// Also by a projection of all of them that is added to every token. Only
    /// with [`Tokenization::Units`], where they share one token.
    #[default]
    EveryToken,
}

/// Shape of a G.pt.
///
/// [`Default`] is the shape of the bundled weights;
/// [`reference`](Self::reference) has the inputs of the G.pt code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// How parameters are cut into tokens. Default [`Tokenization::Units`].
    pub tokenization: Tokenization,
    /// How the scalars reach the tokens. Default [`Conditioning::EveryToken`].
    pub conditioning: Conditioning,
    /// Width `D` of the transformer, a multiple of `heads`. Default 128.
    pub width: usize,
    /// Number of blocks `L`. Default 6.
    pub blocks: usize,
    /// Attention heads `H`. Default 4.
    pub heads: usize,
    /// Linear layers in a token's encoder, at least 1. Default 1.
    pub encoder_depth: usize,
    /// Linear layers in a token's decoder, at least 1. Default 1.
    pub decoder_depth: usize,
    /// Frequencies `F` of the scalar embedding. Default 32 (reference: 128).
    pub frequencies: usize,
    /// Highest frequency, as a power of two. Default 7 (reference: 14).
    pub max_frequency_log2: f64,
    /// What metrics are multiplied by before they are embedded, so that they are about
    /// as large as losses. Default 1, 1/40 for errors in percent, and 1/200 for returns.
    #[serde(default = "unscaled")]
    pub metric_scale: f64,
    /// What the timestep is multiplied by before it is embedded. Default 1e-3
    /// (reference: 1).
    pub timestep_scale: f64,
    /// Whether the noised parameters are multiplied by `sqrt(ᾱ_t)`, so that
    /// what is mostly noise is small in its token beside the starting
    /// parameters. Default true (reference: false).
    ///
    /// # Source
    /// The idea of scaling the input by its share of signal: Karras et al.
    /// 2022, arXiv:2206.00364, section 5.
    pub signal_scaling: bool,
    /// Whether target and present metric are given besides their difference. Default true.
    pub absolute_conditioning: bool,
    /// What is predicted. Default [`Prediction::Start`].
    pub prediction: Prediction,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            tokenization: Tokenization::Units,
            conditioning: Conditioning::EveryToken,
            width: 128,
            blocks: 6,
            heads: 4,
            encoder_depth: 1,
            decoder_depth: 1,
            frequencies: 32,
            max_frequency_log2: 7.0,
            metric_scale: 1.0,
            timestep_scale: 1e-3,
            signal_scaling: true,
            absolute_conditioning: true,
            prediction: Prediction::Start,
        }
    }
}

/// What weights that were made before metrics could be scaled have.
fn unscaled() -> f64 {
    1.0
}

impl ModelConfig {
    /// The default shape, for a metric of this kind.
    pub fn for_metric(kind: MetricKind) -> Self {
        let metric_scale = match kind {
            MetricKind::Error => 0.025,
            MetricKind::Loss | MetricKind::Score => 1.0,
            // Returns of some hundreds are usual.
            MetricKind::Return => 0.005,
        };
        Self { metric_scale, ..Self::default() }
    }

    /// The inputs of the G.pt code, with one of its tokenizations.
    pub fn reference(tokenization: Tokenization) -> Self {
        Self {
            tokenization,
            conditioning: Conditioning::OwnTokens,
            frequencies: 128,
            max_frequency_log2: 14.0,
            timestep_scale: 1.0,
            signal_scaling: false,
            ..Self::default()
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = ConfigError::check;
        check(self.width > 0, "width", &self.width, &"at least 1")?;
        check(self.blocks > 0, "blocks", &self.blocks, &"at least 1")?;
        let divides = self.heads > 0 && self.width.is_multiple_of(self.heads);
        check(divides, "heads", &self.heads, &format!("a divisor of width {}", self.width))?;
        check(self.encoder_depth > 0, "encoder_depth", &self.encoder_depth, &"at least 1")?;
        check(self.decoder_depth > 0, "decoder_depth", &self.decoder_depth, &"at least 1")?;
        check(self.frequencies > 1, "frequencies", &self.frequencies, &"at least 2")?;
        let range = 0.0..=30.0;
        let log2 = self.max_frequency_log2;
        check(range.contains(&log2), "max_frequency_log2", &log2, &"0 to 30")?;
        let scale = self.timestep_scale;
        check(scale.is_finite() && scale > 0.0, "timestep_scale", &scale, &"a positive number")?;
        let scale = self.metric_scale;
        check(scale.is_finite() && scale > 0.0, "metric_scale", &scale, &"a positive number")?;
        let every_token = self.conditioning == Conditioning::EveryToken;
        let units = self.tokenization == Tokenization::Units;
        check(
            units || !every_token,
            "conditioning",
            &"every_token",
            &"own_tokens, unless the tokenization is units",
        )?;
        match self.tokenization {
            Tokenization::Chunk { length }
            | Tokenization::ChunkWithinLayer { length }
            | Tokenization::ChunkWithinInput { length } => {
                check(length > 0, "length", &length, &"at least 1")
            }
            Tokenization::LayerByLayer | Tokenization::Units => Ok(()),
        }
    }
}
