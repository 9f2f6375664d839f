//! One golden case: its JSON and its tensors.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lopt::gpt::{ModelConfig, Prediction, Tokenization};
use lopt::layout::{Layout, LayoutBuilder, Role};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::report::{Bound, Outcome};

/// A tensor, widened to `f64`, which holds every value of the stored types
/// that occur (`f32`, `f64` and small integers).
pub struct Tensor {
    shape: Vec<usize>,
    values: Vec<f64>,
}

/// A JSON description and the tensors beside it.
pub struct Case {
    json: Value,
    tensors: BTreeMap<String, Tensor>,
    read: RefCell<BTreeSet<String>>,
}

impl Case {
    /// Reads a JSON file, and the safetensors file of the same name if the JSON
    /// describes tensors.
    pub fn load(file: &Path) -> Outcome<Self> {
        let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| format!("not JSON: {e}"))?;
        let mut tensors = BTreeMap::new();
        let described =
            json.get("tensors").and_then(Value::as_object).is_some_and(|t| !t.is_empty());
        let file = file.with_extension("safetensors");
        if described || file.exists() {
            let bytes = std::fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
            tensors = read_tensors(&bytes)?;
        }
        Ok(Self { json, tensors, read: RefCell::default() })
    }

    /// The whole JSON.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// A field of the JSON.
    pub fn field(&self, name: &str) -> Outcome<&Value> {
        self.json.get(name).filter(|v| !v.is_null()).ok_or_else(|| format!("no field `{name}`"))
    }

    /// A text field of the JSON.
    pub fn text(&self, name: &str) -> Outcome<&str> {
        text(&self.json, name)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn tensor(&self, name: &str) -> Outcome<&Tensor> {
        self.read.borrow_mut().insert(name.to_owned());
        self.tensors.get(name).ok_or_else(|| format!("no tensor `{name}`"))
    }

    /// Values of a tensor.
    pub fn values(&self, name: &str) -> Outcome<&[f64]> {
        self.tensor(name).map(|t| &t.values[..])
    }

    /// Values of a tensor in another type.
    pub fn cast<F: num_traits::Float>(&self, name: &str) -> Outcome<Vec<F>> {
        Ok(cast(self.values(name)?))
    }

    /// Values of a tensor of integers.
    pub fn indices(&self, name: &str) -> Outcome<Vec<usize>> {
        Ok(self.values(name)?.iter().map(|&v| v as usize).collect())
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Outcome<&[usize]> {
        self.tensor(name).map(|t| &t.shape[..])
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Names of the tensors that nothing has looked at.
    pub fn unread(&self) -> Vec<String> {
        let read = self.read.borrow();
        self.tensors.keys().filter(|name| !read.contains(*name)).cloned().collect()
    }

    /// The tolerance that the case states under a name, for a largest value.
    pub fn suggested(&self, name: &str, otherwise: Bound) -> Bound {
        let stated = self.json.get("suggested_tolerance").and_then(|t| t.get(name));
        match stated.and_then(Value::as_f64) {
            Some(share) if name.ends_with("_rel") => Bound::Relative(share),
            Some(error) => Bound::Absolute(error),
            None => otherwise,
        }
    }

    /// The layout of the network that G.pt writes, with no unit groups.
    pub fn layout(&self, field: &str) -> Outcome<Layout> {
        let mut builder = LayoutBuilder::new();
        for (name, shape) in named_shapes(self.field(field)?)? {
            let role = if shape.len() > 1 { Role::Weight } else { Role::Bias };
            builder.tensor(&name, &shape, role);
        }
        builder.finish().map_err(|e| e.to_string())
    }

    /// The shape of the G.pt itself.
    pub fn model_config(&self) -> Outcome<ModelConfig> {
        let json = self.field("config")?;
        let starts = json.get("predict_xstart");
        let starts = starts.or_else(|| self.json.get("diffusion")?.get("predict_xstart"));
        let mut config = ModelConfig {
            tokenization: tokenization(json, "split_policy")?,
            width: count(json, "n_embd")?,
            blocks: count(json, "n_layer")?,
            heads: count(json, "n_head")?,
            encoder_depth: count(json, "encoder_depth").unwrap_or(1),
            decoder_depth: count(json, "decoder_depth").unwrap_or(1),
            frequencies: count(json, "num_frequencies")?,
            max_frequency_log2: number(json, "max_freq_log2")?,
            absolute_conditioning: flag(json, "absolute_loss_conditioning")?,
            prediction: Prediction::Start,
            ..ModelConfig::reference(Tokenization::LayerByLayer)
        };
        if starts.and_then(Value::as_bool) == Some(false) {
            config.prediction = Prediction::Noise;
        }
        Ok(config)
    }
}

/// Reads a safetensors file.
pub fn read_tensors(bytes: &[u8]) -> Outcome<BTreeMap<String, Tensor>> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => each(data, |b| f64::from(f32::from_le_bytes(b))),
            Dtype::F64 => each(data, f64::from_le_bytes),
            Dtype::I32 => each(data, |b| f64::from(i32::from_le_bytes(b))),
            Dtype::I64 => each(data, |b| i64::from_le_bytes(b) as f64),
            other => return Err(format!("tensor `{name}` is {other:?}")),
        };
        Ok((name, Tensor { shape: view.shape().to_vec(), values }))
    };
    file.tensors().into_iter().map(tensor).collect()
}

fn each<const N: usize>(data: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    let bytes = |chunk: &[u8]| {
        let mut bytes = [0; N];
        bytes.copy_from_slice(chunk);
        value(bytes)
    };
    data.chunks_exact(N).map(bytes).collect()
}

/// The tokenization that a field names, with the chunk size beside it.
pub fn tokenization(json: &Value, field: &str) -> Outcome<Tokenization> {
    let length = || count(json, "chunk_size");
    Ok(match text(json, field)? {
        "chunk" => Tokenization::Chunk { length: length()? },
        "layer_by_layer" => Tokenization::LayerByLayer,
        "chunk_within_layer" => Tokenization::ChunkWithinLayer { length: length()? },
        "chunk_within_input" => Tokenization::ChunkWithinInput { length: length()? },
        other => return Err(format!("no tokenization `{other}`")),
    })
}

/// Values in another type.
pub fn cast<F: num_traits::Float>(values: &[f64]) -> Vec<F> {
    values.iter().map(|&v| F::from(v).unwrap_or_else(F::nan)).collect()
}

/// Values in `f64`.
pub fn widen<F: num_traits::Float>(values: &[F]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64().unwrap_or(f64::NAN)).collect()
}

/// A list of `{name, shape}`.
pub fn named_shapes(json: &Value) -> Outcome<Vec<(String, Vec<usize>)>> {
    let entry = |e: &Value| Ok((text(e, "name")?.to_owned(), counts(e, "shape")?));
    json.as_array().ok_or("the layout is not a list")?.iter().map(entry).collect()
}

/// A text in an object.
pub fn text<'a>(json: &'a Value, name: &str) -> Outcome<&'a str> {
    json.get(name).and_then(Value::as_str).ok_or_else(|| format!("no text `{name}`"))
}

/// A number in an object.
pub fn number(json: &Value, name: &str) -> Outcome<f64> {
    json.get(name).and_then(Value::as_f64).ok_or_else(|| format!("no number `{name}`"))
}

/// A whole number in an object.
pub fn count(json: &Value, name: &str) -> Outcome<usize> {
    let count = json.get(name).and_then(Value::as_u64);
    count.map(|c| c as usize).ok_or_else(|| format!("no count `{name}`"))
}

/// Yes or no in an object.
pub fn flag(json: &Value, name: &str) -> Outcome<bool> {
    json.get(name).and_then(Value::as_bool).ok_or_else(|| format!("no yes or no `{name}`"))
}

/// A list in an object.
pub fn list<'a>(json: &'a Value, name: &str) -> Outcome<&'a [Value]> {
    let list = json.get(name).and_then(Value::as_array);
    list.map(Vec::as_slice).ok_or_else(|| format!("no list `{name}`"))
}

/// A list of numbers in an object.
pub fn numbers(json: &Value, name: &str) -> Outcome<Vec<f64>> {
    let numbers = list(json, name)?.iter().map(Value::as_f64).collect::<Option<_>>();
    numbers.ok_or_else(|| format!("`{name}` holds more than numbers"))
}

/// A list of whole numbers in an object.
pub fn counts(json: &Value, name: &str) -> Outcome<Vec<usize>> {
    Ok(numbers(json, name)?.into_iter().map(|n| n as usize).collect())
}
