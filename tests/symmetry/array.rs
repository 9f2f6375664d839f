//! Arrays and the arithmetic of layers, written without dfdx and without the
//! library: what the layouts are checked against.

/// `[N, units]`, `[N, S, units]` or `[N, channels, H, W]`, in this order.
#[derive(Clone, Debug)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl Array {
    pub fn new(shape: &[usize], data: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        Self { shape: shape.to_vec(), data }
    }

    pub fn last(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    pub fn map(mut self, f: impl Fn(f64) -> f64) -> Self {
        self.data.iter_mut().for_each(|v| *v = f(*v));
        self
    }

    pub fn plus(mut self, other: &Self) -> Self {
        assert_eq!(self.shape, other.shape);
        self.data.iter_mut().zip(&other.data).for_each(|(a, b)| *a += b);
        self
    }

    /// Applies `f` to each value and its position on an axis.
    pub fn along(mut self, axis: usize, f: impl Fn(usize, f64) -> f64) -> Self {
        let inner: usize = self.shape[axis + 1..].iter().product();
        let length = self.shape[axis];
        for (i, value) in self.data.iter_mut().enumerate() {
            *value = f(i / inner % length, *value);
        }
        self
    }

    /// Replaces the last axis, row by row.
    fn rows(self, length: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Self {
        let data: Vec<f64> = self.data.chunks(self.last()).flat_map(f).collect();
        let mut shape = self.shape;
        *shape.last_mut().unwrap() = length;
        Self::new(&shape, data)
    }

    /// `weight [outputs, inputs]`.
    pub fn linear(self, outputs: usize, weight: &[f64], bias: Option<&[f64]>) -> Self {
        let inputs = self.last();
        self.rows(outputs, |row| {
            let product = |o: usize| -> f64 {
                row.iter().zip(&weight[o * inputs..]).map(|(x, w)| x * w).sum()
            };
            (0..outputs).map(|o| product(o) + bias.map_or(0.0, |bias| bias[o])).collect()
        })
    }

    pub fn softmax(self) -> Self {
        let length = self.last();
        self.rows(length, |row| {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exp: Vec<f64> = row.iter().map(|v| (v - largest).exp()).collect();
            let sum: f64 = exp.iter().sum();
            exp.iter().map(|v| v / sum).collect()
        })
    }

    pub fn layer_norm(self, scale: &[f64], shift: &[f64]) -> Self {
        let length = self.last();
        self.rows(length, |row| {
            let (mean, deviation) = moments(row);
            let norm = row.iter().map(|v| (v - mean) / deviation);
            norm.zip(scale).zip(shift).map(|((v, scale), shift)| v * scale + shift).collect()
        })
    }

    /// Mean and deviation over all axes but the second.
    pub fn statistics(&self) -> Vec<(f64, f64)> {
        let inner: usize = self.shape[2..].iter().product();
        let of = |c: usize| {
            let values = self.data.iter().enumerate();
            let values = values.filter(|(i, _)| i / inner % self.shape[1] == c);
            moments(&values.map(|(_, &v)| v).collect::<Vec<_>>())
        };
        (0..self.shape[1]).map(of).collect()
    }

    /// `weight [outputs, inputs / groups, kernel, kernel]`.
    pub fn conv2d(
        &self,
        [outputs, kernel, stride, padding, groups]: [usize; 5],
        weight: &[f64],
        bias: Option<&[f64]>,
    ) -> Self {
        let [n, inputs, h, w] = self.shape[..] else { panic!("no image") };
        let size = |length: usize| (length + 2 * padding - kernel) / stride + 1;
        let (out_h, out_w) = (size(h), size(w));
        let (read, written) = (inputs / groups, outputs / groups);
        let mut data = Vec::new();
        for item in 0..n {
            for o in 0..outputs {
                for at in 0..out_h * out_w {
                    let mut sum = bias.map_or(0.0, |bias| bias[o]);
                    for i in 0..read {
                        let channel = o / written * read + i;
                        for k in 0..kernel * kernel {
                            let y = at / out_w * stride + k / kernel;
                            let x = at % out_w * stride + k % kernel;
                            if (padding..h + padding).contains(&y)
                                && (padding..w + padding).contains(&x)
                            {
                                let row = (item * inputs + channel) * h + y - padding;
                                sum += self.data[row * w + x - padding]
                                    * weight[(o * read + i) * kernel * kernel + k];
                            }
                        }
                    }
                    data.push(sum);
                }
            }
        }
        Self::new(&[n, outputs, out_h, out_w], data)
    }

    /// Combines windows of `kernel` by `kernel`, side by side.
    pub fn pool2d(&self, kernel: usize, f: impl Fn(&[f64]) -> f64) -> Self {
        let [n, c, h, w] = self.shape[..] else { panic!("no image") };
        let (out_h, out_w) = (h / kernel, w / kernel);
        let mut data = Vec::new();
        for plane in 0..n * c {
            for at in 0..out_h * out_w {
                let window = (0..kernel * kernel).map(|k| {
                    let y = at / out_w * kernel + k / kernel;
                    self.data[(plane * h + y) * w + at % out_w * kernel + k % kernel]
                });
                data.push(f(&window.collect::<Vec<_>>()));
            }
        }
        Self::new(&[n, c, out_h, out_w], data)
    }

    /// Combines each plane to one value.
    pub fn pool_global(&self, f: impl Fn(&[f64]) -> f64) -> Self {
        let [n, c, h, w] = self.shape[..] else { panic!("no image") };
        Self::new(&[n, c], self.data.chunks(h * w).map(f).collect())
    }

    /// All axes but the first become one.
    pub fn flatten(self) -> Self {
        let n = self.shape[0];
        let length = self.data.len() / n;
        Self::new(&[n, length], self.data)
    }

    /// Attention of `heads` over `[N, S, ..]`, without its linear maps.
    pub fn attend(&self, keys: &Self, values: &Self, heads: usize) -> Self {
        let [n, s, k] = self.shape[..] else { panic!("no sequence") };
        let (v, head) = (values.last(), k / heads);
        let at = |array: &Self, item: usize, position: usize, i: usize| {
            array.data[(item * s + position) * array.last() + i]
        };
        let mut out = Self::new(&[n, s, v], vec![0.0; n * s * v]);
        for item in 0..n {
            for from in 0..s {
                for h in 0..heads {
                    let score = |to: usize| -> f64 {
                        let units = h * head..(h + 1) * head;
                        units.map(|i| at(self, item, from, i) * at(keys, item, to, i)).sum()
                    };
                    let scores = (0..s).map(|to| score(to) / (head as f64).sqrt()).collect();
                    let weights = Self::new(&[1, s], scores).softmax().data;
                    for i in h * v / heads..(h + 1) * v / heads {
                        out.data[(item * s + from) * v + i] =
                            (0..s).map(|to| weights[to] * at(values, item, to, i)).sum();
                    }
                }
            }
        }
        out
    }
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

pub fn max(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

fn moments(values: &[f64]) -> (f64, f64) {
    let mean = mean(values);
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
    (mean, (variance + 1e-3).sqrt())
}
