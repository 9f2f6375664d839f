//! The small networks whose parameters the cases hold: linear layers and
//! convolutions in `f64`, written plainly.

use crate::report::Outcome;

/// What a layer does with its input.
enum Kind {
    Linear,
    Convolution { stride: usize, padding: usize },
}

struct Layer {
    kind: Kind,
    shape: Vec<usize>,
    weight: usize,
    bias: Option<usize>,
}

/// A chain of layers with one activation between them.
pub struct Network {
    layers: Vec<Layer>,
    activation: fn(f64) -> f64,
}

impl Network {
    /// Reads names and shapes, and what `architecture` (PyTorch's description,
    /// where there is one) says of convolutions and activations. ReLU otherwise.
    pub fn new(tensors: &[(String, Vec<usize>)], architecture: &str) -> Outcome<Self> {
        let (mut layers, mut offset) = (Vec::<Layer>::new(), 0);
        for (name, shape) in tensors {
            let bias = name.ends_with("bias");
            match layers.last_mut() {
                Some(layer) if bias => layer.bias = Some(offset),
                _ if shape.len() < 2 => {}
                _ => {
                    let kind = match shape.len() {
                        2 => Kind::Linear,
                        _ => convolution(name, architecture)?,
                    };
                    layers.push(Layer { kind, shape: shape.clone(), weight: offset, bias: None });
                }
            }
            offset += shape.iter().product::<usize>();
        }
        let activation = activation(architecture)?;
        Ok(Self { layers, activation })
    }

    /// Outputs `[N, O]` for inputs `[N, ..]`, whose shape without `N` is given.
    pub fn forward(&self, flat: &[f64], inputs: &[f64], shape: &[usize]) -> Vec<f64> {
        let size: usize = shape.iter().product();
        inputs.chunks(size).flat_map(|x| self.one(flat, x, shape)).collect()
    }

    fn one(&self, flat: &[f64], input: &[f64], shape: &[usize]) -> Vec<f64> {
        let (mut x, mut shape) = (input.to_vec(), shape.to_vec());
        for (i, layer) in self.layers.iter().enumerate() {
            if i > 0 {
                x.iter_mut().for_each(|v| *v = (self.activation)(*v));
            }
            if matches!(layer.kind, Kind::Linear) && shape.len() == 3 && x.len() > layer.shape[1] {
                // Global average pooling.
                let area = shape[1] * shape[2];
                x = x.chunks(area).map(|c| c.iter().sum::<f64>() / area as f64).collect();
            }
            (x, shape) = layer.forward(flat, &x, &shape);
        }
        x
    }
}

/// The activation that `architecture` names; ReLU, which PyTorch does not show
/// where it is called as a function, if it names none.
fn activation(architecture: &str) -> Outcome<fn(f64) -> f64> {
    let names = architecture.lines().filter_map(|line| line.trim().split_once("): "));
    let names = names.filter_map(|(_, module)| module.split_once('('));
    let mut found: fn(f64) -> f64 = |v| v.max(0.0);
    for (name, _) in names {
        found = match name {
            "SELU" => selu,
            "Tanh" => f64::tanh,
            "ReLU" | "Linear" | "Conv2d" | "AdaptiveAvgPool2d" | "Sequential" | "Flatten" => found,
            other => return Err(format!("no layer `{other}`")),
        };
    }
    Ok(found)
}

fn selu(v: f64) -> f64 {
    let inner = if v > 0.0 { v } else { 1.673_263_242_354_377_2 * v.exp_m1() };
    1.050_700_987_355_480_5 * inner
}

fn convolution(name: &str, architecture: &str) -> Outcome<Kind> {
    let layer = name.trim_end_matches(".weight");
    let line = architecture.lines().find(|l| l.contains(&format!("({layer}): Conv2d(")));
    let line = line.ok_or_else(|| format!("`architecture` does not describe `{layer}`"))?;
    let value = |key: &str, otherwise| {
        let Some((_, rest)) = line.split_once(&format!("{key}=(")) else { return Ok(otherwise) };
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<usize>().map_err(|_| format!("{key} of `{layer}`"))
    };
    Ok(Kind::Convolution { stride: value("stride", 1)?, padding: value("padding", 0)? })
}

impl Layer {
    fn forward(&self, flat: &[f64], x: &[f64], shape: &[usize]) -> (Vec<f64>, Vec<usize>) {
        let outputs = self.shape[0];
        let size: usize = self.shape[1..].iter().product();
        let weight = |o: usize| &flat[self.weight + o * size..][..size];
        let bias = |o: usize| self.bias.map_or(0.0, |b| flat[b + o]);
        let (stride, padding) = match self.kind {
            Kind::Linear => {
                let dot = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
                let y = (0..outputs).map(|o| dot(weight(o)) + bias(o)).collect();
                return (y, vec![outputs]);
            }
            Kind::Convolution { stride, padding } => (stride, padding),
        };
        let (height, width, kernel) = (shape[1], shape[2], self.shape[2]);
        let length = |l: usize| (l + 2 * padding - kernel) / stride + 1;
        let (rows, columns) = (length(height), length(width));
        let mut y = Vec::with_capacity(outputs * rows * columns);
        for o in 0..outputs {
            for r in 0..rows {
                for c in 0..columns {
                    let mut sum = bias(o);
                    for (k, w) in weight(o).iter().enumerate() {
                        let (channel, i, j) =
                            (k / (kernel * kernel), k / kernel % kernel, k % kernel);
                        let (i, j) = (r * stride + i, c * stride + j);
                        let inside = (padding..height + padding).contains(&i)
                            && (padding..width + padding).contains(&j);
                        if inside {
                            let at = (channel * height + i - padding) * width + j - padding;
                            sum += w * x[at];
                        }
                    }
                    y.push(sum);
                }
            }
        }
        (y, vec![outputs, rows, columns])
    }
}

/// Cross entropy of each row of logits.
pub fn cross_entropy(logits: &[f64], labels: &[usize]) -> Vec<f64> {
    let rows = logits.chunks(logits.len() / labels.len()).zip(labels);
    let loss = |(row, &label): (&[f64], &usize)| {
        let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        highest + row.iter().map(|v| (v - highest).exp()).sum::<f64>().ln() - row[label]
    };
    rows.map(loss).collect()
}

/// Share of rows, in percent, whose largest logit is not that of the label.
pub fn error_percent(logits: &[f64], labels: &[usize]) -> f64 {
    let rows = logits.chunks(logits.len() / labels.len()).zip(labels);
    let wrong = rows.filter(|(row, &label)| row.iter().any(|&v| v > row[label])).count();
    100.0 * wrong as f64 / labels.len() as f64
}
