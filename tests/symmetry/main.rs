//! Properties: transforming the units of a group changes no output, of random
//! architectures and of dfdx models, and flat vectors keep every bit.
//!
//! A random architecture is described to the library and computed here, with
//! arithmetic that knows of no units. That the tests can fail is tested too.

mod architecture;
mod array;
mod grammar;
mod models;
mod stacks;

use lopt::layout::{Layout, UnitGroup};
use lopt::symmetry::{Symmetry, Transformation};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use architecture::{evaluate, layout, Layer, Statistics, Told};
use array::Array;
use grammar::{architecture, Architecture};

const BATCH: usize = 4;

/// An architecture with parameters and inputs.
struct Case {
    architecture: Architecture,
    flat: Vec<f64>,
    input: Array,
    /// Of other inputs, for batch norms in inference.
    statistics: Vec<Statistics>,
}

impl Case {
    fn new(rng: &mut ChaCha8Rng) -> Self {
        let architecture = architecture(rng);
        let count = layout(&architecture.layers, Told::Truth).unwrap().num_parameters();
        let flat: Vec<f64> = (0..count).map(|_| rng.gen_range(-1.0..1.0)).collect();
        let mut inputs = || {
            let shape = architecture.input.dims(BATCH);
            let count = shape.iter().product();
            match architecture.words {
                Some(words) => {
                    let data = (0..count).map(|_| rng.gen_range(0..words) as f64).collect();
                    Array::new(&shape[..2], data)
                }
                None => Array::new(&shape, (0..count).map(|_| rng.gen_range(-2.0..2.0)).collect()),
            }
        };
        let (input, other) = (inputs(), inputs());
        let statistics = evaluate(&architecture.layers, &flat, &other, None).1;
        Self { architecture, flat, input, statistics }
    }

    fn layout(&self) -> Layout {
        layout(&self.architecture.layers, Told::Truth).unwrap()
    }

    /// Largest change of an output by a transformation of the parameters, as a
    /// share of the largest output: with the statistics of the batch, and with
    /// running statistics that are moved along.
    fn changes(&self, transformation: &Transformation) -> [f64; 2] {
        let mut moved = vec![0.0; self.flat.len()];
        transformation.apply(&self.flat, &mut moved);
        let outputs = |flat: &[f64], statistics: Option<&[Statistics]>| {
            evaluate(&self.architecture.layers, flat, &self.input, statistics).0
        };
        let followed =
            self.statistics.iter().map(|s| follow(s, transformation)).collect::<Vec<_>>();
        [
            change(&outputs(&self.flat, None), &outputs(&moved, None)),
            change(&outputs(&self.flat, Some(&self.statistics)), &outputs(&moved, Some(&followed))),
        ]
    }

    fn change(&self, transformation: &Transformation) -> f64 {
        self.changes(transformation).into_iter().fold(0.0, f64::max)
    }
}

/// The running statistics of a batch norm move as its scale and its shift do.
fn follow(statistics: &Statistics, transformation: &Transformation) -> Statistics {
    let Some([scale, shift]) = statistics.tensors else { return statistics.clone() };
    let mut moved = statistics.clone();
    for (c, value) in moved.values.iter_mut().enumerate() {
        *value = statistics.values[transformation.index()[scale + c] as usize - scale];
        if transformation.flips(shift + c) {
            value.0 = -value.0;
        }
    }
    moved
}

fn change(a: &Array, b: &Array) -> f64 {
    let largest = a.data.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
    a.data.iter().zip(&b.data).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max) / largest
}

/// Only the order of summation differs; layers, and norms above all, amplify it.
const TOLERANCE: f64 = 1e-8;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_architectures_keep_outputs(seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let case = Case::new(&mut rng);
        let transformation = Symmetry::new(&case.layout()).sample(&mut rng);
        let [training, inference] = case.changes(&transformation);
        prop_assert!(training < TOLERANCE, "{training} in training, {:#?}", case.architecture);
        prop_assert!(inference < TOLERANCE, "{inference} in inference, {:#?}", case.architecture);
    }
}

fn cases(count: u64) -> impl Iterator<Item = (Case, ChaCha8Rng)> {
    (0..count).map(|seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (Case::new(&mut rng), rng)
    })
}

/// What the test above says it covers.
#[test]
fn random_architectures_have_groups_of_every_kind() {
    let mut found = std::collections::BTreeMap::new();
    for (case, _) in cases(1000) {
        let layout = case.layout();
        for group in layout.groups() {
            let tensor = |axis: &lopt::layout::UnitAxis| &layout.tensors()[axis.tensor];
            let any = |f: &dyn Fn(&lopt::layout::UnitAxis) -> bool| group.axes.iter().any(f);
            let mut count = |kind, is| *found.entry(kind).or_insert(0) += usize::from(is);
            count("all", group.units > 1);
            count("odd", group.odd);
            count("linear", any(&|a| tensor(a).shape.len() == 2));
            count("convolution", any(&|a| tensor(a).shape.len() == 4));
            count(
                "both",
                any(&|a| tensor(a).shape.len() == 4) && any(&|a| tensor(a).shape.len() == 2),
            );
            count("block", any(&|a| a.block > 1));
            count("heads", any(&|a| tensor(a).name.contains("w_q") && a.produces));
            count("norm", any(&|a| tensor(a).role == lopt::layout::Role::Scale));
            let twice = |a: &lopt::layout::UnitAxis| {
                group.axes.iter().filter(|b| b.tensor == a.tensor).count() == 2
            };
            count("both sides of one weight", any(&twice));
            let producers = |b: &&lopt::layout::UnitAxis| b.produces && tensor(b).shape.len() > 1;
            count("several producers", group.axes.iter().filter(producers).count() > 1);
            count("grouped convolution", group.axes.iter().filter(producers).any(|a| a.block > 1));
        }
    }
    assert!(found["all"] > 1000, "{found:?}");
    assert!(found.values().all(|&count| count > 20), "{found:?}");
}

/// How often a wrong layout changes outputs, of the cases that it is wrong for.
struct Caught {
    caught: usize,
    of: usize,
}

impl Caught {
    fn by(count: u64, mut change: impl FnMut(&Case, &mut ChaCha8Rng) -> Option<f64>) -> Self {
        let mut this = Self { caught: 0, of: 0 };
        for (case, mut rng) in cases(count) {
            if let Some(change) = change(&case, &mut rng) {
                this.of += 1;
                this.caught += usize::from(change > 1e3 * TOLERANCE);
            }
        }
        this
    }

    fn share(&self) -> f64 {
        assert!(self.of > 30, "only {} cases", self.of);
        self.caught as f64 / self.of as f64
    }
}

/// A transformation by one group alone, every unit of which moves.
fn rotate(layout: &Layout, group: usize) -> Vec<Vec<usize>> {
    let groups = layout.groups().iter().enumerate();
    let turn =
        |g: usize, n: usize| (0..n).map(|unit| (unit + usize::from(g == group)) % n).collect();
    groups.map(|(g, of)| turn(g, of.units)).collect()
}

fn edited(layout: &Layout, edit: impl FnOnce(&mut serde_json::Value)) -> Layout {
    let mut json = serde_json::to_value(layout).unwrap();
    edit(&mut json);
    serde_json::from_value(json).unwrap()
}

/// Leaving one axis of a group behind shows, but where the axis has no effect
/// (behind dead units, say).
#[test]
fn a_group_without_one_of_its_axes_changes_outputs() {
    let caught = Caught::by(400, |case, rng| {
        let layout = case.layout();
        let wide = |group: &UnitGroup| group.units > 1;
        let group = layout.groups().iter().position(wide)?;
        let axis = rng.gen_range(0..layout.groups()[group].axes.len());
        if layout.groups()[group].axes.len() == 1 {
            return None;
        }
        let broken = edited(&layout, |json| {
            json["groups"][group]["axes"].as_array_mut().unwrap().remove(axis);
        });
        let permutations = rotate(&layout, group);
        Some(case.change(&Symmetry::new(&broken).transformation(&permutations, &[])))
    });
    assert!(caught.share() > 0.8);
}

/// Signs that may not change show.
#[test]
fn a_group_that_is_not_odd_shows_its_signs() {
    let caught = Caught::by(400, |case, _| {
        let layout = case.layout();
        let group = layout.groups().iter().position(|group| !group.odd && group.units > 1)?;
        let broken = edited(&layout, |json| json["groups"][group]["odd"] = true.into());
        let permutations = rotate(&layout, usize::MAX);
        let flips = layout.groups().iter().enumerate();
        // One unit: some layers are odd in all together.
        let flip = |g, units| (0..units).map(|unit| g == group && unit == 0).collect();
        let flips: Vec<Vec<bool>> = flips.map(|(g, of)| flip(g, of.units)).collect();
        Some(case.change(&Symmetry::new(&broken).transformation(&permutations, &flips)))
    });
    assert!(caught.share() > 0.8);
}

/// Groups that a wrong description finds, and the right one does not, show. (Two
/// units that change places are not told from two that are reversed.)
#[test]
fn groups_that_are_none_change_outputs() {
    for told in [Told::NoSkips, Told::NothingFrozen, Told::NothingReversed] {
        let caught = Caught::by(1500, |case, _| {
            let wrong = layout(&case.architecture.layers, told).ok()?;
            if wrong.num_parameters() != case.flat.len() {
                return None;
            }
            let right = case.layout();
            let new = |group: &UnitGroup| right.groups().iter().all(|g| g.axes != group.axes);
            let group = wrong.groups().iter().position(|g| g.units > 2 && new(g))?;
            Some(case.change(&Symmetry::new(&wrong).transformation(&rotate(&wrong, group), &[])))
        });
        assert!(caught.share() > 0.8);
    }
}

/// A layer of each kind is drawn.
#[test]
fn the_grammar_draws_every_layer() {
    let mut kinds = std::collections::BTreeSet::new();
    fn visit(layers: &[Layer], kinds: &mut std::collections::BTreeSet<String>) {
        for layer in layers {
            let name = format!("{layer:?}");
            let end = name.find(|c: char| !c.is_alphanumeric()).unwrap_or(name.len());
            kinds.insert(name[..end].to_owned());
            match layer {
                Layer::Residual(a) | Layer::Frozen(a) | Layer::Branch(_, a) => visit(a, kinds),
                Layer::Parallel(a, b) => {
                    [a, b].map(|layers| visit(layers, kinds)).into_iter().collect()
                }
                Layer::Split(a, b) => a.iter().chain(b).for_each(|layers| visit(layers, kinds)),
                _ => {}
            }
        }
    }
    cases(300).for_each(|(case, _)| visit(&case.architecture.layers, &mut kinds));
    assert_eq!(kinds.len(), 23, "{kinds:?}");
}
