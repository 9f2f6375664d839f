//! Weights files: what is saved is loaded, and what is broken is refused.

use lopt::gpt::{
    Calibration, ModelConfig, Normalizer, Precision, PromptRange, SamplerConfig, Tokenization,
    Transformer, Weights, WeightsHeader,
};
use lopt::layout::LayoutBuilder;
use lopt::metric::Metric;
use proptest::prelude::*;

fn weights(tokenization: Tokenization) -> Weights {
    let mut builder = LayoutBuilder::new();
    builder.scope("hidden", |b| b.linear(3, 4, true));
    builder.scope("output", |b| b.linear(4, 2, true));
    let layout = builder.finish().unwrap();
    let base = match tokenization {
        Tokenization::Units => ModelConfig::default(),
        _ => ModelConfig::reference(tokenization),
    };
    let config = ModelConfig { width: 8, blocks: 2, heads: 2, frequencies: 4, ..base };
    let model = Transformer::new(config.clone(), &layout).unwrap();
    // Every value another one, so that a tensor in the wrong place shows.
    let parameters = (0..model.num_parameters()).map(|i| i as f32 * 0.5).collect();
    let header = WeightsHeader {
        config,
        layout,
        normalizer: Normalizer { scale: 4.0 },
        metric: Metric::VALIDATION_LOSS,
        prompt_range: PromptRange { best: 0.1, worst: 2.3 },
        calibration: Calibration::fit(&[0.1, 2.3], &[0.5, 2.0]),
        sampler: SamplerConfig::default(),
        task: "test".into(),
        provenance: serde_json::json!({ "seed": 1 }),
    };
    Weights { header, parameters, frequencies: model.frequencies().to_vec() }
}

fn bytes(weights: &Weights) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    weights.save(&path, Precision::F32).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(Weights::load(&path).unwrap(), *weights);
    bytes
}

#[test]
fn what_is_saved_is_loaded() {
    for tokenization in [
        Tokenization::Units,
        Tokenization::LayerByLayer,
        Tokenization::Chunk { length: 7 },
        Tokenization::ChunkWithinLayer { length: 5 },
        Tokenization::ChunkWithinInput { length: 9 },
    ] {
        bytes(&weights(tokenization));
    }
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let bytes = bytes(&weights(Tokenization::Units));
    for cut in 0..bytes.len() {
        assert!(Weights::from_bytes(&bytes[..cut]).is_err(), "cut to {cut} bytes");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(Weights::from_bytes(&longer).is_err());
}

#[test]
fn a_header_that_lies_is_refused() {
    let original = bytes(&weights(Tokenization::Units));
    let length = u64::from_le_bytes(original[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(original[8..8 + length].to_vec()).unwrap();
    for (from, to) in [
        (r#"\"width\":8"#, r#"\"width\":16"#),
        (r#"\"width\":8"#, r#"\"width\":65536"#),
        (r#"\"width\":8"#, r#"\"width\":0"#),
        (r#"\"blocks\":2"#, r#"\"blocks\":1"#),
        (r#"\"blocks\":2"#, r#"\"blocks\":4000"#),
        (r#"\"heads\":2"#, r#"\"heads\":3"#),
        (r#"\"shape\":[4,3]"#, r#"\"shape\":[4,0]"#),
        (r#"\"shape\":[4,3]"#, r#"\"shape\":[400000,300000]"#),
        (r#"\"units\":4"#, r#"\"units\":5"#),
        (r#"\"scale\":4.0"#, r#"\"scale\":-4.0"#),
        (r#"\"wanted\":[0.5,2.0]"#, r#"\"wanted\":[2.0,0.5]"#),
        (r#"\"wanted\":[0.5,2.0]"#, r#"\"wanted\":[0.5]"#),
        (r#"\"best\":0.1"#, r#"\"best\":9.0"#),
        (r#"\"format\":1"#, r#"\"format\":2"#),
    ] {
        let changed = header.replacen(from, to, 1);
        assert_ne!(changed, header, "{from} is in the header");
        let mut bytes = (changed.len() as u64).to_le_bytes().to_vec();
        bytes.extend(changed.as_bytes());
        bytes.extend(&original[8 + length..]);
        assert!(Weights::from_bytes(&bytes).is_err(), "{to}");
    }
    let mut endless = original;
    endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(Weights::from_bytes(&endless).is_err());
}

#[test]
fn values_that_are_not_finite_are_refused() {
    let mut bytes = bytes(&weights(Tokenization::Units));
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(Weights::from_bytes(&bytes).is_err());
}

proptest! {
    #[test]
    fn a_changed_byte_never_panics(at in 0usize..4000, value: u8) {
        let mut bytes = bytes(&weights(Tokenization::Units));
        let at = at % bytes.len();
        bytes[at] = value;
        // A changed parameter cannot be noticed; anything else must not panic.
        let _ = Weights::from_bytes(&bytes);
    }
}
