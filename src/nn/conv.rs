//! The layers `Conv2D` and `UnbiasedConv2D`.

use dfdx::nn::{
    BuildModule, BuildOnDevice, Module, ModuleVisitor, NonMutableModule, TensorCollection,
    TensorOptions,
};
use dfdx::shapes::{Const, Dim, Dtype, HasShape, Rank1, Shape};
use dfdx::tensor::{PutTape, SplitTape, Storage, Tape, Tensor};
use dfdx::tensor_ops::{Device, ReshapeTo};
use num_traits::Float;
use rand_distr::uniform::SampleUniform;
use rand_distr::Uniform;

use super::convolution::Convolution;
use super::device::{refuse, HostDevice};
use super::lanes::Value;
use super::shape::{Planes, Quotient, Window};

/// Descriptions: what a network is written with.
pub mod builders {
    /// A convolution of images with a square kernel, and a bias for each output
    /// channel.
    ///
    /// It cuts the `I` input channels into `G` groups; each of them makes
    /// `O / G` of the output channels. Weight and bias start uniform within
    /// `1 / sqrt(I / G * K * K)` of zero, as in PyTorch (`torch.nn.Conv2d`).
    ///
    /// - `I`, `O`: channels of input and output.
    /// - `K`: height and width of the kernel.
    /// - `S`: places that the kernel moves in a step. Default: 1.
    /// - `P`: rows and columns of zeros around the image. Default: 0.
    /// - `G`: groups of channels; must divide `I` and `O`. Default: 1.
    ///
    /// # Shapes
    /// Input `[N, I, H, W]` or `[I, H, W]`, output `[N, O, H', W']` or
    /// `[O, H', W']` with `H' = (H + 2 P - K) / S + 1` rounded down, and `W'`
    /// likewise; both are known at run time only. Weight `[O, I / G, K, K]`,
    /// bias `[O]`.
    ///
    /// # Errors
    /// The forward pass, if the kernel is larger than the padded image: dfdx's
    /// error for a wrong number of elements, as it has none for shapes.
    ///
    /// # Examples
    /// ```
    /// use dfdx::prelude::*;
    /// use lopt::nn::Conv2D;
    ///
    /// let dev = Cpu::default();
    /// let conv = dev.build_module::<Conv2D<1, 16, 3, 2>, f32>();
    /// let images = dev.sample_normal::<Rank4<8, 1, 28, 28>>();
    /// assert_eq!(conv.forward(images).shape().concrete(), [8, 16, 13, 13]);
    /// ```
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Conv2D<
        const I: usize,
        const O: usize,
        const K: usize,
        const S: usize = 1,
        const P: usize = 0,
        const G: usize = 1,
    >;

    /// [`Conv2D`] without a bias.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct UnbiasedConv2D<
        const I: usize,
        const O: usize,
        const K: usize,
        const S: usize = 1,
        const P: usize = 0,
        const G: usize = 1,
    >;
}

/// Shape of the weight of a convolution: `[O, I / G, K, K]`.
pub type ConvWeight<const I: usize, const O: usize, const K: usize, const G: usize> =
    (Const<O>, Quotient<I, G>, Const<K>, Const<K>);

/// What is built from [`builders::Conv2D`].
#[derive(Clone, Debug)]
pub struct Conv2D<
    const I: usize,
    const O: usize,
    const K: usize,
    const S: usize,
    const P: usize,
    const G: usize,
    E: Dtype,
    D: Storage<E>,
> {
    /// `[O, I / G, K, K]`
    pub weight: Tensor<ConvWeight<I, O, K, G>, E, D>,
    /// `[O]`
    pub bias: Tensor<Rank1<O>, E, D>,
}

/// What is built from [`builders::UnbiasedConv2D`].
#[derive(Clone, Debug)]
pub struct UnbiasedConv2D<
    const I: usize,
    const O: usize,
    const K: usize,
    const S: usize,
    const P: usize,
    const G: usize,
    E: Dtype,
    D: Storage<E>,
> {
    /// `[O, I / G, K, K]`
    pub weight: Tensor<ConvWeight<I, O, K, G>, E, D>,
}

/// `1 / sqrt(inputs of an output)`
fn bound<E: Dtype + Float, const I: usize, const K: usize, const G: usize>() -> E {
    let fan_in = I / G * K * K;
    E::ONE / E::from_usize(fan_in).unwrap_or(E::ONE).sqrt()
}

/// Both forms of the layer, of a description and of the built type.
macro_rules! layer {
    ($name:ident, ($($tensor:ident $shape:ty),+), $bias:expr) => {
        impl<
                const I: usize,
                const O: usize,
                const K: usize,
                const S: usize,
                const P: usize,
                const G: usize,
                E: Dtype,
                D: Device<E>,
            > BuildOnDevice<D, E> for builders::$name<I, O, K, S, P, G>
        where
            $name<I, O, K, S, P, G, E, D>: BuildModule<D, E>,
        {
            type Built = $name<I, O, K, S, P, G, E, D>;
        }

        impl<
                const I: usize,
                const O: usize,
                const K: usize,
                const S: usize,
                const P: usize,
                const G: usize,
                E: Dtype + Float + SampleUniform,
                D: Device<E>,
            > TensorCollection<E, D> for $name<I, O, K, S, P, G, E, D>
        {
            type To<E2: Dtype, D2: Device<E2>> = $name<I, O, K, S, P, G, E2, D2>;

            fn iter_tensors<V: ModuleVisitor<Self, E, D>>(
                visitor: &mut V,
            ) -> Result<Option<Self::To<V::E2, V::D2>>, V::Err> {
                const { assert!(O.is_multiple_of(G), "groups must divide the outputs") };
                visitor.visit_fields(
                    ($(Self::tensor(
                        stringify!($tensor),
                        |layer| &layer.$tensor,
                        |layer| &mut layer.$tensor,
                        TensorOptions::reset_with(|tensor| {
                            let bound = bound::<E, I, K, G>();
                            tensor.try_fill_with_distr(Uniform::new(-bound, bound))
                        }),
                    ),)+),
                    |($($tensor,)+)| $name { $($tensor),+ },
                )
            }
        }

        impl<
                const I: usize,
                const O: usize,
                const K: usize,
                const S: usize,
                const P: usize,
                const G: usize,
                E: Dtype,
                D: Storage<E>,
            > NonMutableModule for $name<I, O, K, S, P, G, E, D>
        {
        }

        impl<
                const I: usize,
                const O: usize,
                const K: usize,
                const S: usize,
                const P: usize,
                const G: usize,
                N: Dim,
                H: Dim,
                W: Dim,
                E: Value,
                D: HostDevice<E>,
                T: Tape<E, D>,
            > Module<Tensor<(N, Const<I>, H, W), E, D, T>> for $name<I, O, K, S, P, G, E, D>
        {
            type Output = Tensor<(N, Const<O>, usize, usize), E, D, T>;
            type Error = D::Err;

            fn try_forward(
                &self,
                input: Tensor<(N, Const<I>, H, W), E, D, T>,
            ) -> Result<Self::Output, D::Err> {
                let (n, _, h, w) = *input.shape();
                let window = Window { kernel: K, stride: S, padding: P };
                let image = [h.size(), w.size()];
                let bias: fn(&Self) -> Option<&Tensor<Rank1<O>, E, D>> = $bias;
                convolve::<I, O, K, G, _, _, _, _, _>(
                    input, image, window, &self.weight, bias(self), |h, w| (n, Const, h, w),
                )
            }
        }

        impl<
                const I: usize,
                const O: usize,
                const K: usize,
                const S: usize,
                const P: usize,
                const G: usize,
                H: Dim,
                W: Dim,
                E: Value,
                D: HostDevice<E>,
                T: Tape<E, D>,
            > Module<Tensor<(Const<I>, H, W), E, D, T>> for $name<I, O, K, S, P, G, E, D>
        {
            type Output = Tensor<(Const<O>, usize, usize), E, D, T>;
            type Error = D::Err;

            fn try_forward(
                &self,
                input: Tensor<(Const<I>, H, W), E, D, T>,
            ) -> Result<Self::Output, D::Err> {
                let (_, h, w) = *input.shape();
                let window = Window { kernel: K, stride: S, padding: P };
                let image = [h.size(), w.size()];
                let bias: fn(&Self) -> Option<&Tensor<Rank1<O>, E, D>> = $bias;
                convolve::<I, O, K, G, _, _, _, _, _>(
                    input, image, window, &self.weight, bias(self), |h, w| (Const, h, w),
                )
            }
        }
    };
}

layer!(Conv2D, (weight ConvWeight<I, O, K, G>, bias Rank1<O>), |layer| Some(&layer.bias));
layer!(UnbiasedConv2D, (weight ConvWeight<I, O, K, G>), |_| None);

/// Puts a convolution on the tape of `input`.
fn convolve<const I: usize, const O: usize, const K: usize, const G: usize, X, Y, E, D, T>(
    input: Tensor<X, E, D, T>,
    image: [usize; 2],
    window: Window,
    weight: &Tensor<ConvWeight<I, O, K, G>, E, D>,
    bias: Option<&Tensor<Rank1<O>, E, D>>,
    shape: impl FnOnce(usize, usize) -> Y,
) -> Result<Tensor<Y, E, D, T>, D::Err>
where
    X: Shape,
    Y: Shape,
    E: Value,
    D: HostDevice<E>,
    T: Tape<E, D>,
{
    let Some(planes) = Planes::new(window, image) else {
        return refuse::<_, E, D>(input.device());
    };
    let sizes = Convolution { planes, inputs: I, outputs: O, groups: G };
    let shape = shape(planes.output[0], planes.output[1]);

    // Tensors that were permuted or broadcast are copied, on the tape.
    let (input, tape) = input.try_contiguous()?.split_tape();
    let (weight, weight_tape) = weight.retaped::<T>().try_contiguous()?.split_tape();
    let mut tape = tape.merge(weight_tape);
    let bias = match bias {
        None => None,
        Some(bias) => {
            let (bias, bias_tape) = bias.retaped::<T>().try_contiguous()?.split_tape();
            tape = tape.merge(bias_tape);
            Some(bias)
        }
    };

    let mut out = input.device().try_zeros_like(&shape)?;
    sizes.forward(
        D::values(&input),
        D::values(&weight),
        bias.as_ref().map(|bias| D::values(bias)),
        D::values_mut(&mut out),
    );

    let out_ghost = out.ghost();
    tape.add_backward_op(move |gradients| {
        // Taken out and put back, for there is only one borrow at a time.
        let out_gradient = std::mem::take(D::gradient(gradients.get_or_alloc_mut(&out_ghost)?));
        let input_gradient = D::gradient(gradients.get_or_alloc_mut(&input)?);
        let (weight_gradient, bias_gradient) =
            sizes.backward(D::values(&input), D::values(&weight), &out_gradient, input_gradient);
        *D::gradient(gradients.get_or_alloc_mut(&out_ghost)?) = out_gradient;
        add(D::gradient(gradients.get_or_alloc_mut(&weight)?), &weight_gradient);
        if let Some(bias) = &bias {
            add(D::gradient(gradients.get_or_alloc_mut(bias)?), &bias_gradient);
        }
        Ok(())
    });
    Ok(out.put_tape(tape))
}

fn add<E: Value>(sum: &mut [E], part: &[E]) {
    for (sum, part) in sum.iter_mut().zip(part) {
        *sum += *part;
    }
}
