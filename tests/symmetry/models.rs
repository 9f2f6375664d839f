//! dfdx models: reordering the units of a group changes no output, and flat
//! vectors keep every bit.

use dfdx::nn::tensor_collection::TensorCollection;
use dfdx::prelude::*;
use lopt::network::{flatten, unflatten, Built};
use lopt::symmetry::{gather, Symmetry};
use lopt::Network;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[lopt::network]
struct Shallow {
    hidden: Linear<4, 12>,
    activation: ReLU,
    output: Linear<12, 3>,
}

#[lopt::network]
struct Deep {
    a: Linear<4, 9>,
    a_activation: Tanh,
    b: Linear<9, 1>,
    b_activation: FastGeLU,
    c: Linear<1, 7>,
    c_activation: Abs,
    d: Linear<7, 7>,
    d_activation: Sin,
    e: Linear<7, 8>,
    e_activation: Sigmoid,
    output: Linear<8, 3>,
}

#[lopt::network]
struct Normalised {
    before: LayerNorm1D<4>,
    a: Linear<4, 8>,
    a_norm: LayerNorm1D<8>,
    a_activation: AccurateGeLU,
    b: UnbiasedLinear<8, 6>,
    b_activation: Square,
    b_norm: LayerNorm1D<6>,
    output: UnbiasedLinear<6, 3>,
    after: LayerNorm1D<3>,
}

#[lopt::network]
struct Branchless<Activation> {
    map: Linear<5, 6>,
    activation: Activation,
    dropout: Dropout,
}

/// Units that leave one network and enter the next.
#[lopt::network]
struct Nested {
    first: Linear<4, 5>,
    block: Branchless<Softmax>,
    pair: (Linear<6, 4>, (Abs, Linear<4, 5>)),
    last: Branchless<Cos>,
    output: Linear<6, 3>,
}

/// Everything else that reorders with the units, or breaks the thread.
#[lopt::network]
struct Mixed {
    a: Linear<4, 6>,
    a_slope: dfdx::nn::builders::PReLU,
    a_mix: LogSoftmax,
    b: Linear<6, 6>,
    b_norm: BatchNorm1D<6>,
    b_activation: Exp,
    b_mix: Softmax,
    c: Linear<6, 5>,
    c_slopes: dfdx::nn::builders::PReLU1D<Const<5>>,
    output: Linear<5, 3>,
}

type Plain = (Linear<4, 8>, ReLU, Linear<8, 8>, ReLU, Linear<8, 3>);

type Input<E> = Tensor<Rank2<6, 4>, E, Cpu>;
type Output<E> = Tensor<Rank2<6, 3>, E, Cpu>;

/// A model of `N` with random parameters of the given size (dfdx's own start
/// has zeros and ones in norms, and slopes that do nothing).
fn random<N>(rng: &mut ChaCha8Rng, scale: f64) -> (Built<N, f64, Cpu>, Vec<f64>)
where
    N: Network + BuildOnDevice<Cpu, f64>,
{
    let mut model = Cpu::default().build_module::<N, f64>();
    let flat: Vec<f64> = (0..N::NUM_PARAMETERS).map(|_| rng.gen_range(-scale..scale)).collect();
    unflatten(&mut model, &flat).unwrap();
    (model, flat)
}

/// Largest change of an output, as a share of the largest output.
fn change(a: &Output<f64>, b: &Output<f64>) -> f64 {
    let (a, b) = (a.as_vec(), b.as_vec());
    let largest = a.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
    a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max) / largest
}

/// Reorders units at random and compares the outputs, in `f64` and in `f32`.
///
/// Tolerances: only the order of summation differs, over at most 12 terms a
/// layer, and layers can amplify: 1e-10 and 2e-3 of the largest output.
fn keeps_outputs<N>(seed: u64, groups: usize, scale: f64)
where
    N: Network + BuildOnDevice<Cpu, f64> + BuildOnDevice<Cpu, f32>,
    Built<N, f64, Cpu>: Module<Input<f64>, Output = Output<f64>>,
    Built<N, f32, Cpu>: Module<Input<f32>, Output = Output<f32>>,
{
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut model, flat) = random::<N>(&mut rng, scale);
    let layout = N::layout().unwrap();
    assert_eq!(layout.groups().len(), groups);
    let mut moved = vec![0.0; flat.len()];
    Symmetry::new(&layout).sample(&mut rng).apply(&flat, &mut moved);

    let x: Input<f64> = Cpu::seed_from_u64(seed).sample_normal();
    let before = model.forward(x.clone());
    unflatten(&mut model, &moved).unwrap();
    let error = change(&before, &model.forward(x.clone()));
    assert!(error < 1e-10, "outputs change by {error}");

    let mut model = Cpu::default().build_module::<N, f32>();
    let narrow = |flat: &[f64]| flat.iter().map(|&v| v as f32).collect::<Vec<_>>();
    unflatten(&mut model, &narrow(&flat)).unwrap();
    let before = model.forward(x.clone().to_dtype::<f32>());
    unflatten(&mut model, &narrow(&moved)).unwrap();
    let after = model.forward(x.to_dtype::<f32>());
    let error = change(&before.to_dtype::<f64>(), &after.to_dtype::<f64>());
    assert!(error < 2e-3, "outputs change by {error} in f32");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn reordered_units_keep_outputs(seed: u64, scale in 0.1..2.0) {
        keeps_outputs::<Shallow>(seed, 1, scale);
        keeps_outputs::<Deep>(seed, 5, scale);
        keeps_outputs::<Normalised>(seed, 2, scale);
        keeps_outputs::<Nested>(seed, 5, scale);
        keeps_outputs::<Mixed>(seed, 3, scale);
        keeps_outputs::<Plain>(seed, 2, scale);
    }

    /// The test above can fail: leaving any one axis of a group behind shows.
    #[test]
    fn a_group_without_one_of_its_axes_changes_outputs(seed: u64) {
        let layout = serde_json::to_value(Normalised::layout().unwrap()).unwrap();
        let groups = layout["groups"].as_array().unwrap().len();
        for group in 0..groups {
            for axis in 0..layout["groups"][group]["axes"].as_array().unwrap().len() {
                let mut broken = layout.clone();
                broken["groups"][group]["axes"].as_array_mut().unwrap().remove(axis);
                let symmetry = Symmetry::new(&serde_json::from_value(broken).unwrap());
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let (mut model, flat) = random::<Normalised>(&mut rng, 1.0);
                let rotate = |n: usize| (0..n).map(|unit| (unit + 1) % n).collect::<Vec<_>>();
                let index = symmetry.index(&[rotate(8), rotate(6)]);
                let mut moved = vec![0.0; flat.len()];
                gather(&index, &flat, &mut moved);
                let x: Input<f64> = Cpu::seed_from_u64(seed).sample_normal();
                let before = model.forward(x.clone());
                unflatten(&mut model, &moved).unwrap();
                prop_assert!(change(&before, &model.forward(x)) > 1e-6);
            }
        }
    }

    /// Any bits at all: NaNs with payloads, infinities, subnormal numbers, -0.
    #[test]
    fn flat_vectors_keep_every_bit(
        bits in prop::collection::vec(any::<u32>(), Nested::NUM_PARAMETERS),
        special in prop::collection::vec(
            prop::sample::select(vec![0x7fa0_0001, 0xffc1_2345, 0x7f80_0000, 1, 0x8000_0000]),
            16,
        ),
    ) {
        let bits: Vec<u32> = special.into_iter().chain(bits).take(Nested::NUM_PARAMETERS).collect();
        let mut model = Cpu::default().build_module::<Nested, f32>();
        // A tensor whose memory is in another order than its axes.
        model.first.weight = Cpu::default().zeros::<Rank2<4, 5>>().permute();
        let flat: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
        unflatten(&mut model, &flat).unwrap();
        prop_assert_eq!(&bits_of(&model), &bits);
        prop_assert_eq!(model.output.bias.as_vec()[2].to_bits(), bits[bits.len() - 1]);
        // And from a model to a vector to another model.
        let mut other = Cpu::default().build_module::<Nested, f32>();
        unflatten(&mut other, &flatten(&model).unwrap() as &[f32]).unwrap();
        prop_assert_eq!(&bits_of(&other), &bits);
        prop_assert_eq!(&bits_of(&model), &bits);
    }
}

fn bits_of<M: TensorCollection<f32, Cpu>>(model: &M) -> Vec<u32> {
    flatten(model).unwrap().into_iter().map(f32::to_bits).collect()
}
