//! Number types whose loops are written with vector registers.

use std::cell::Cell;

use dfdx::shapes::Dtype;
use pulp::Simd;

/// A number type that these layers compute in: `f32` or `f64`.
pub trait Value: Dtype + num_traits::Float + Lanes {}

impl Value for f32 {}
impl Value for f64 {}

/// Vectors of a number type in the instruction set `S`.
#[doc(hidden)]
pub trait Lanes: Copy + Sized + Send + Sync + 'static {
    type Vector<S: Simd>: Copy;

    /// Values in a vector; divides [`MAX_LANES`].
    fn lanes<S: Simd>() -> usize {
        size_of::<Self::Vector<S>>() / size_of::<Self>()
    }
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    fn plus<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// `a * b + c`
    fn multiply_add<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;
    fn total<S: Simd>(simd: S, vector: Self::Vector<S>) -> Self;
    /// Reads less than a vector; the rest is zero.
    fn load_part<S: Simd>(simd: S, from: &[Self]) -> Self::Vector<S>;
    /// Writes less than a vector.
    fn store_part<S: Simd>(simd: S, to: &mut [Self], vector: Self::Vector<S>);

    /// Zeros to work with, in memory that the thread keeps from call to call: fresh pages
    /// cost more than what is computed in them.
    fn take_scratch(len: usize) -> Vec<Self>;
    /// Gives them back.
    fn put_scratch(scratch: Vec<Self>);
}

/// The most values that any instruction set has in a vector.
pub(super) const MAX_LANES: usize = 16;

/// What a thread keeps between calls.
#[derive(Default)]
struct Scratch {
    f32: Cell<Vec<f32>>,
    f64: Cell<Vec<f64>>,
}

thread_local! {
    static SCRATCH: Scratch = Scratch::default();
}

macro_rules! lanes {
    (
        $value:ident, $vector:ident, $splat:ident, $add:ident, $multiply_add:ident, $sum:ident,
        $load:ident, $store:ident
    ) => {
        impl Lanes for $value {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$vector {
                simd.$splat(value)
            }
            #[inline(always)]
            fn plus<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$add(a, b)
            }
            #[inline(always)]
            fn multiply_add<S: Simd>(
                simd: S,
                a: S::$vector,
                b: S::$vector,
                c: S::$vector,
            ) -> S::$vector {
                simd.$multiply_add(a, b, c)
            }
            #[inline(always)]
            fn total<S: Simd>(simd: S, vector: S::$vector) -> Self {
                simd.$sum(vector)
            }
            #[inline(always)]
            fn load_part<S: Simd>(simd: S, from: &[Self]) -> S::$vector {
                simd.$load(from)
            }
            #[inline(always)]
            fn store_part<S: Simd>(simd: S, to: &mut [Self], vector: S::$vector) {
                simd.$store(to, vector);
            }

            fn take_scratch(len: usize) -> Vec<Self> {
                let mut scratch = SCRATCH.with(|kept| kept.$value.take());
                scratch.clear();
                scratch.resize(len, 0.0);
                scratch
            }
            fn put_scratch(scratch: Vec<Self>) {
                SCRATCH.with(|kept| kept.$value.set(scratch));
            }
        }
    };
}

lanes!(
    f32,
    f32s,
    splat_f32s,
    add_f32s,
    mul_add_e_f32s,
    reduce_sum_f32s,
    partial_load_f32s,
    partial_store_f32s
);
lanes!(
    f64,
    f64s,
    splat_f64s,
    add_f64s,
    mul_add_e_f64s,
    reduce_sum_f64s,
    partial_load_f64s,
    partial_store_f64s
);
