//! The pooling layers, and `Flatten2D`.

use dfdx::nn::{Module, NonMutableModule, ZeroSizedModule};
use dfdx::shapes::{Const, Dim, HasShape, Shape};
use dfdx::tensor::{Tape, Tensor};
use dfdx::tensor_ops::{Device, ReshapeTo};

use super::device::{record, refuse, HostDevice};
use super::lanes::Value;
use super::pooling::{Average, GlobalAverage, Maximum};
use super::shape::{Planes, Window};

/// The largest value under a square window that moves over each channel.
///
/// Padding is never the largest value. The gradient goes to the first of equal
/// values, as in PyTorch (`torch.nn.MaxPool2d`).
///
/// - `K`: height and width of the window.
/// - `S`: places that the window moves in a step. Default: 1.
/// - `P`: rows and columns around the image that the window may cover as well;
///   at most half of `K`. Default: 0.
///
/// # Shapes
/// Input `[N, C, H, W]` or `[C, H, W]`, output `[N, C, H', W']` or
/// `[C, H', W']` with `H' = (H + 2 P - K) / S + 1` rounded down, and `W'`
/// likewise; both are known at run time only.
///
/// # Errors
/// The forward pass, if the window is larger than the padded image: dfdx's
/// error for a wrong number of elements, as it has none for shapes.
///
/// # Examples
/// ```
/// use dfdx::prelude::*;
/// use lopt::nn::MaxPool2D;
///
/// let dev = Cpu::default();
/// let image = dev.tensor([[[1.0f32, 2.0, 5.0], [0.0, 3.0, 4.0]]]);
/// let pool = dev.build_module::<MaxPool2D<2>, f32>();
/// assert_eq!(pool.forward(image).as_vec(), [3.0, 5.0]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaxPool2D<const K: usize, const S: usize = 1, const P: usize = 0>;

/// The mean under a square window that moves over each channel.
///
/// Padding counts as zeros, so every sum is divided by `K * K`, as in PyTorch
/// (`torch.nn.AvgPool2d`).
///
/// - `K`: height and width of the window.
/// - `S`: places that the window moves in a step. Default: 1.
/// - `P`: rows and columns of zeros around the image; at most half of `K`.
///   Default: 0.
///
/// # Shapes
/// As of [`MaxPool2D`].
///
/// # Errors
/// As of [`MaxPool2D`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AvgPool2D<const K: usize, const S: usize = 1, const P: usize = 0>;

/// The mean of each channel.
///
/// The same function as dfdx's layer of this name, by vectors.
///
/// # Shapes
/// Input `[N, C, H, W]` or `[C, H, W]`, output `[N, C]` or `[C]`.
///
/// # Errors
/// The forward pass, if the channels have no values: dfdx's error for a wrong
/// number of elements, as it has none for shapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AvgPoolGlobal;

/// An image becomes a vector of `F` values, channel by channel.
///
/// # Shapes
/// Input `[N, C, H, W]` or `[C, H, W]`, output `[N, F]` or `[F]`.
///
/// # Errors
/// The forward pass, if an image has another number of values than `F`: dfdx's
/// error for a wrong number of elements, as it has none for shapes.
///
/// # Examples
/// ```
/// use dfdx::prelude::*;
/// use lopt::nn::{Conv2D, Flatten2D};
///
/// let dev = Cpu::default();
/// type Network = (Conv2D<1, 4, 5, 3>, Flatten2D<256>, Linear<256, 10>);
/// let network = dev.build_module::<Network, f32>();
/// let scores = network.try_forward(dev.sample_normal::<Rank4<2, 1, 28, 28>>())?;
/// assert_eq!(scores.shape().0, 2);
/// assert!(network.try_forward(dev.sample_normal::<Rank4<2, 1, 27, 20>>()).is_err());
/// # Ok::<(), CpuError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flatten2D<const F: usize>;

impl<const K: usize, const S: usize, const P: usize> ZeroSizedModule for MaxPool2D<K, S, P> {}
impl<const K: usize, const S: usize, const P: usize> NonMutableModule for MaxPool2D<K, S, P> {}
impl<const K: usize, const S: usize, const P: usize> ZeroSizedModule for AvgPool2D<K, S, P> {}
impl<const K: usize, const S: usize, const P: usize> NonMutableModule for AvgPool2D<K, S, P> {}
impl ZeroSizedModule for AvgPoolGlobal {}
impl NonMutableModule for AvgPoolGlobal {}
impl<const F: usize> ZeroSizedModule for Flatten2D<F> {}
impl<const F: usize> NonMutableModule for Flatten2D<F> {}

/// The window of a pooling layer.
const fn pool_window<const K: usize, const S: usize, const P: usize>() -> Window {
    assert!(K > 0, "a window has at least one value");
    assert!(S > 0, "a window moves at least one place in a step");
    assert!(2 * P <= K, "padding is at most half of the window");
    Window { kernel: K, stride: S, padding: P }
}

/// Both forms of a layer with a window.
macro_rules! windowed {
    ($layer:ident, $pool:ident) => {
        impl<const K: usize, const S: usize, const P: usize, N, C, H, W, E, D, T>
            Module<Tensor<(N, C, H, W), E, D, T>> for $layer<K, S, P>
        where
            N: Dim,
            C: Dim,
            H: Dim,
            W: Dim,
            E: Value,
            D: HostDevice<E>,
            T: Tape<E, D>,
        {
            type Output = Tensor<(N, C, usize, usize), E, D, T>;
            type Error = D::Err;

            fn try_forward(
                &self,
                input: Tensor<(N, C, H, W), E, D, T>,
            ) -> Result<Self::Output, D::Err> {
                let (n, c, h, w) = *input.shape();
                let window = const { pool_window::<K, S, P>() };
                match Planes::new(window, [h.size(), w.size()]) {
                    Some(planes) => {
                        let [h, w] = planes.output;
                        $pool(input, planes, (n, c, h, w))
                    }
                    None => refuse::<_, E, D>(input.device()),
                }
            }
        }

        impl<const K: usize, const S: usize, const P: usize, C, H, W, E, D, T>
            Module<Tensor<(C, H, W), E, D, T>> for $layer<K, S, P>
        where
            C: Dim,
            H: Dim,
            W: Dim,
            E: Value,
            D: HostDevice<E>,
            T: Tape<E, D>,
        {
            type Output = Tensor<(C, usize, usize), E, D, T>;
            type Error = D::Err;

            fn try_forward(
                &self,
                input: Tensor<(C, H, W), E, D, T>,
            ) -> Result<Self::Output, D::Err> {
                let (c, h, w) = *input.shape();
                let window = const { pool_window::<K, S, P>() };
                match Planes::new(window, [h.size(), w.size()]) {
                    Some(planes) => {
                        let [h, w] = planes.output;
                        $pool(input, planes, (c, h, w))
                    }
                    None => refuse::<_, E, D>(input.device()),
                }
            }
        }
    };
}

windowed!(MaxPool2D, max_pool);
windowed!(AvgPool2D, average_pool);

fn max_pool<X: Shape, Y: Shape, E: Value, D: HostDevice<E>, T: Tape<E, D>>(
    input: Tensor<X, E, D, T>,
    planes: Planes,
    shape: Y,
) -> Result<Tensor<Y, E, D, T>, D::Err> {
    record(input, shape, Maximum { planes, places: Vec::new() })
}

fn average_pool<X: Shape, Y: Shape, E: Value, D: HostDevice<E>, T: Tape<E, D>>(
    input: Tensor<X, E, D, T>,
    planes: Planes,
    shape: Y,
) -> Result<Tensor<Y, E, D, T>, D::Err> {
    record(input, shape, Average { planes })
}

impl<N, C, H, W, E, D, T> Module<Tensor<(N, C, H, W), E, D, T>> for AvgPoolGlobal
where
    N: Dim,
    C: Dim,
    H: Dim,
    W: Dim,
    E: Value,
    D: HostDevice<E>,
    T: Tape<E, D>,
{
    type Output = Tensor<(N, C), E, D, T>;
    type Error = D::Err;

    fn try_forward(&self, input: Tensor<(N, C, H, W), E, D, T>) -> Result<Self::Output, D::Err> {
        let (n, c, h, w) = *input.shape();
        match h.size() * w.size() {
            0 => refuse::<_, E, D>(input.device()),
            area => record(input, (n, c), GlobalAverage { area }),
        }
    }
}

impl<C, H, W, E, D, T> Module<Tensor<(C, H, W), E, D, T>> for AvgPoolGlobal
where
    C: Dim,
    H: Dim,
    W: Dim,
    E: Value,
    D: HostDevice<E>,
    T: Tape<E, D>,
{
    type Output = Tensor<(C,), E, D, T>;
    type Error = D::Err;

    fn try_forward(&self, input: Tensor<(C, H, W), E, D, T>) -> Result<Self::Output, D::Err> {
        let (c, h, w) = *input.shape();
        match h.size() * w.size() {
            0 => refuse::<_, E, D>(input.device()),
            area => record(input, (c,), GlobalAverage { area }),
        }
    }
}

impl<const F: usize, N, C, H, W, E, D, T> Module<Tensor<(N, C, H, W), E, D, T>> for Flatten2D<F>
where
    N: Dim,
    C: Dim,
    H: Dim,
    W: Dim,
    E: Value,
    D: Device<E>,
    T: Tape<E, D>,
{
    type Output = Tensor<(N, Const<F>), E, D, T>;
    type Error = D::Err;

    fn try_forward(&self, input: Tensor<(N, C, H, W), E, D, T>) -> Result<Self::Output, D::Err> {
        let (n, c, h, w) = *input.shape();
        if c.size() * h.size() * w.size() != F {
            return refuse::<_, E, D>(input.device());
        }
        input.try_reshape_like(&(n, Const))
    }
}

impl<const F: usize, C, H, W, E, D, T> Module<Tensor<(C, H, W), E, D, T>> for Flatten2D<F>
where
    C: Dim,
    H: Dim,
    W: Dim,
    E: Value,
    D: Device<E>,
    T: Tape<E, D>,
{
    type Output = Tensor<(Const<F>,), E, D, T>;
    type Error = D::Err;

    fn try_forward(&self, input: Tensor<(C, H, W), E, D, T>) -> Result<Self::Output, D::Err> {
        if input.shape().num_elements() != F {
            return refuse::<_, E, D>(input.device());
        }
        input.try_reshape_like(&(Const,))
    }
}
