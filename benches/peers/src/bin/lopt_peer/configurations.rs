//! The configurations of the table.

use anyhow::bail;
use lopt::gpt::{ModelConfig, Tokenization, Transformer, Weights};
use lopt::layout::{Layout, LayoutBuilder, LayoutError, Role};
use lopt::Pretrained;

/// A configuration of the table: model, weights if they are bundled, and batch.
pub struct Configuration {
    pub model: Transformer,
    pub weights: Option<Weights>,
    pub batch: usize,
}

impl Configuration {
    pub fn named(name: &str) -> anyhow::Result<Self> {
        // Pieces of two vectors and of four embedded scalars, 2 F + 1 values each.
        let pieces = |length: usize, pieces: usize, frequencies: usize| {
            let config = ModelConfig::reference(Tokenization::ChunkWithinInput { length });
            (ModelConfig { frequencies, ..config }, vector(pieces * length))
        };
        let ((config, layout), width, blocks, heads, batch) = match name {
            "S" => (pieces(100, 8, 49), 128, 4, 4, 64),
            "M" => (pieces(384, 14, 128), 384, 6, 6, 32),
            "L" => {
                let policy = Tokenization::ChunkWithinLayer { length: 1000 };
                let mut builder = LayoutBuilder::new();
                builder.scope("hidden", |b| b.linear(784, 10, true));
                builder.scope("output", |b| b.linear(10, 10, true));
                ((ModelConfig::reference(policy), builder.finish()), 1536, 12, 16, 8)
            }
            "U" => {
                let weights = Pretrained::Digits.weights()?;
                let model = weights.model()?;
                return Ok(Self { model, weights: Some(weights), batch: 64 });
            }
            other => bail!("no configuration `{other}`: expected S, M, L or U"),
        };
        let config = ModelConfig { width, blocks, heads, ..config };
        Ok(Self { model: Transformer::new(config, &layout?)?, weights: None, batch })
    }
}

fn vector(length: usize) -> Result<Layout, LayoutError> {
    let mut builder = LayoutBuilder::new();
    builder.tensor("vector", &[length], Role::Weight);
    builder.finish()
}
