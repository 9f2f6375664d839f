//! dfdx's own optimizers behind [`LearnedOptimizer`].
//!
//! dfdx's `Sgd`, `Adam` and `RMSprop` update half of a model when a gradient is
//! missing, and keep their moments to themselves. So the adapter calls the same
//! kernels, through dfdx's configurations, but on moments of its own: it
//! computes the whole update beside the model, and then puts it in place.

use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;

use dfdx::nn::{
    RecursiveWalker, TensorCollection, TensorOptions, TensorVisitor, ViewTensorMut, ViewTensorName,
    ViewTensorRef,
};
use dfdx::optim::{
    AdamConfig, Optimizer, OptimizerUpdateError, RMSpropConfig, Sgd, SgdConfig, UnusedTensors,
};
use dfdx::shapes::{Dtype, HasShape, Shape};
use dfdx::tensor::{Gradients, SampleTensor, Storage, Tensor};
use dfdx::tensor_ops::Device;
use rand::Rng;
use rand_distr::Distribution;
use serde::{Deserialize, Serialize};

use super::{
    Feedback, LearnedOptimizer, Needs, OptimizerState, StateError, UpdateError, UpdateReport,
};
use crate::layout::LayoutError;
use crate::network::NetworkError;

/// The rule of one of dfdx's optimizers: [`SgdConfig`], [`AdamConfig`] or
/// [`RMSpropConfig`].
pub trait Rule<E: Dtype, D: Device<E>>: kernel::Kernel<E, D> {}

impl<E: Dtype, D: Device<E>, R: kernel::Kernel<E, D>> Rule<E, D> for R {}

mod kernel {
    use super::*;

    /// For each moment of a rule a buffer for each tensor.
    pub type Moments<E, D> = [Gradients<E, D>; 3];

    /// Where the buffers of one tensor are found in [`Moments`].
    pub type Key<E, D> = Tensor<(usize,), E, D>;

    pub trait Kernel<E: Dtype, D: Device<E>> {
        const NAME: &'static str;

        /// Names of the moments, and whether they start from ones, not zeros.
        const MOMENTS: &'static [(&'static str, bool)];

        /// Updates one tensor, at step 1, 2, ...
        fn step<S: Shape>(
            &self,
            step: i32,
            parameter: &mut Tensor<S, E, D>,
            key: &Key<E, D>,
            moments: &mut Moments<E, D>,
            gradient: &<D as Storage<E>>::Vec,
        ) -> Result<(), D::Err>;
    }

    impl<E: Dtype, D: Device<E>> Kernel<E, D> for SgdConfig {
        const NAME: &'static str = "sgd";
        const MOMENTS: &'static [(&'static str, bool)] = &[("velocity", false)];

        fn step<S: Shape>(
            &self,
            _step: i32,
            parameter: &mut Tensor<S, E, D>,
            key: &Key<E, D>,
            [velocity, _, _]: &mut Moments<E, D>,
            gradient: &<D as Storage<E>>::Vec,
        ) -> Result<(), D::Err> {
            self.try_update(parameter, velocity.get_or_alloc_mut(key)?, gradient)
        }
    }

    impl<E: Dtype, D: Device<E>> Kernel<E, D> for AdamConfig {
        const NAME: &'static str = "adam";
        const MOMENTS: &'static [(&'static str, bool)] = &[("moment1", false), ("moment2", false)];

        fn step<S: Shape>(
            &self,
            step: i32,
            parameter: &mut Tensor<S, E, D>,
            key: &Key<E, D>,
            [first, second, _]: &mut Moments<E, D>,
            gradient: &<D as Storage<E>>::Vec,
        ) -> Result<(), D::Err> {
            let first = first.get_or_alloc_mut(key)?;
            self.try_update(step, parameter, first, second.get_or_alloc_mut(key)?, gradient)
        }
    }

    impl<E: Dtype, D: Device<E>> Kernel<E, D> for RMSpropConfig {
        const NAME: &'static str = "rmsprop";
        const MOMENTS: &'static [(&'static str, bool)] =
            &[("momentum", false), ("square_avg", true), ("grad_avg", false)];

        fn step<S: Shape>(
            &self,
            _step: i32,
            parameter: &mut Tensor<S, E, D>,
            key: &Key<E, D>,
            [momentum, square, mean]: &mut Moments<E, D>,
            gradient: &<D as Storage<E>>::Vec,
        ) -> Result<(), D::Err> {
            let momentum = momentum.get_or_alloc_mut(key)?;
            let square = square.get_or_alloc_mut(key)?;
            self.try_update(parameter, momentum, square, mean.get_or_alloc_mut(key)?, gradient)
        }
    }
}

use kernel::{Key, Moments};

/// dfdx's `Sgd`, `Adam` or `RMSprop` for the model `M`, as a
/// [`LearnedOptimizer`].
///
/// It does what dfdx's optimizer does, to the last bit, as long as nothing is
/// wrong. A missing gradient, or one that is not finite, is an error before
/// anything is changed; so is a result that is not finite. The state can be
/// saved.
///
/// # Examples
/// ```
/// use dfdx::prelude::*;
/// use lopt::optimizer::{Adapter, LearnedOptimizer, UpdateError};
///
/// let dev = Cpu::default();
/// let mut model = dev.build_module::<Linear<2, 1>, f32>();
/// let mut adam = Adapter::adam(&model, AdamConfig::default())?;
///
/// // The bias takes no part in this "loss".
/// let gradients = model.weight.leaky_trace().square().mean().backward();
/// let error = adam.try_update(&mut model, Some(&gradients)).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "tensor `bias` found no gradient, expected one for every trainable tensor"
/// );
/// # Ok::<(), lopt::Error>(())
/// ```
#[derive(Debug)]
pub struct Adapter<R, M, E: Dtype, D: Device<E>> {
    rule: R,
    slots: Vec<Slot<E, D>>,
    moments: Moments<E, D>,
    step: u64,
    last_error: Option<UpdateError>,
    model: PhantomData<fn(&M)>,
}

/// One trainable tensor of the model.
#[derive(Clone, Debug)]
struct Slot<E: Dtype, D: Device<E>> {
    name: String,
    key: Key<E, D>,
}

impl<E: Dtype, D: Device<E>> Slot<E, D> {
    fn len(&self) -> usize {
        self.key.shape().0
    }
}

impl<M: TensorCollection<E, D>, E: Dtype, D: Device<E>> Adapter<SgdConfig, M, E, D> {
    /// Stochastic gradient descent, as [`Sgd`].
    ///
    /// # Errors
    /// If the model's device fails.
    pub fn sgd(model: &M, config: SgdConfig) -> Result<Self, NetworkError> {
        Self::new(model, config)
    }
}

impl<M: TensorCollection<E, D>, E: Dtype, D: Device<E>> Adapter<AdamConfig, M, E, D> {
    /// Adam, as [`Adam`](dfdx::optim::Adam).
    ///
    /// # Errors
    /// If the model's device fails.
    pub fn adam(model: &M, config: AdamConfig) -> Result<Self, NetworkError> {
        Self::new(model, config)
    }
}

impl<M: TensorCollection<E, D>, E: Dtype, D: Device<E>> Adapter<RMSpropConfig, M, E, D> {
    /// RMSprop, as [`RMSprop`](dfdx::optim::RMSprop).
    ///
    /// # Errors
    /// If the model's device fails.
    pub fn rmsprop(model: &M, config: RMSpropConfig) -> Result<Self, NetworkError> {
        Self::new(model, config)
    }
}

impl<R, M, E, D> Adapter<R, M, E, D>
where
    R: Rule<E, D>,
    M: TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    fn new(model: &M, rule: R) -> Result<Self, NetworkError> {
        let mut slots = Slots(Vec::new());
        M::iter_tensors(&mut RecursiveWalker { m: (model, String::new()), f: &mut slots })?;
        let slots = slots.0;
        let mut moments: Moments<E, D> = std::array::from_fn(|_| Gradients::leaky());
        for ((_, ones), moment) in R::MOMENTS.iter().zip(&mut moments) {
            for slot in slots.iter().filter(|_| *ones) {
                write(moment, &slot.key, &vec![E::ONE; slot.len()])?;
            }
        }
        Ok(Self { rule, slots, moments, step: 0, last_error: None, model: PhantomData })
    }

    /// Hyperparameters.
    pub fn config(&self) -> &R {
        &self.rule
    }

    /// Hyperparameters, to be changed between updates, as a learning-rate
    /// schedule does.
    pub fn config_mut(&mut self) -> &mut R {
        &mut self.rule
    }
}

impl<R, M, E, D> Optimizer<M, D, E> for Adapter<R, M, E, D>
where
    R: Rule<E, D>,
    M: TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    fn update(
        &mut self,
        model: &mut M,
        gradients: &Gradients<E, D>,
    ) -> Result<(), OptimizerUpdateError<D::Err>> {
        self.last_error = self.try_update(model, Some(gradients)).err();
        self.last_error.as_ref().map_or(Ok(()), |error| Err(error.to_dfdx()))
    }
}

impl<R, M, E, D> LearnedOptimizer<M, E, D> for Adapter<R, M, E, D>
where
    R: Rule<E, D>,
    M: TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    fn name(&self) -> &str {
        R::NAME
    }

    fn needs(&self) -> Needs {
        Needs::GRADIENTS
    }

    fn observe(&mut self, _feedback: Feedback) {}

    fn try_update(
        &mut self,
        model: &mut M,
        gradients: Option<&Gradients<E, D>>,
    ) -> Result<UpdateReport, UpdateError> {
        let given = gradients.ok_or(UpdateError::NoGradients)?;
        let mut plan = Plan {
            rule: &self.rule,
            step: i32::try_from(self.step + 1).unwrap_or(i32::MAX),
            slots: &self.slots,
            visited: 0,
            given,
            gradients: given.clone(),
            moments: self.moments.clone(),
            updated: Vec::with_capacity(self.slots.len()),
            missing: Vec::new(),
            unused: UnusedTensors::default(),
        };
        M::iter_tensors(&mut RecursiveWalker { m: (&*model, String::new()), f: &mut plan })?;
        if plan.visited != self.slots.len() {
            let (found, expected) = (plan.visited, self.slots.len());
            return Err(LayoutError::TensorCount { found, expected }.into());
        }
        if !plan.missing.is_empty() {
            let (tensors, ids) = (plan.missing, plan.unused.ids);
            return Err(UpdateError::MissingGradient { tensors, ids });
        }
        let moments = plan.moments;
        let mut commit = Commit { updated: plan.updated.into_iter() };
        M::iter_tensors(&mut RecursiveWalker { m: model, f: &mut commit })?;
        self.moments = moments;
        self.step += 1;
        Ok(UpdateReport::default())
    }

    fn last_error(&self) -> Option<&UpdateError> {
        self.last_error.as_ref()
    }

    fn state(&self) -> Result<OptimizerState, StateError> {
        let mut saved = Saved { step: self.step, tensors: Vec::with_capacity(self.slots.len()) };
        for slot in &self.slots {
            let mut moments = Vec::with_capacity(R::MOMENTS.len());
            for ((name, _), moment) in R::MOMENTS.iter().zip(&self.moments) {
                // Before the first update nothing is allocated yet.
                let mut moment = moment.clone();
                moment.try_alloc_for(&slot.key).map_err(NetworkError::device)?;
                let values = moment.get(&slot.key).as_vec();
                let values = values.iter().map(|v| v.to_f64().unwrap_or(f64::NAN)).collect();
                moments.push(((*name).to_owned(), values));
            }
            saved.tensors.push(SavedTensor { name: slot.name.clone(), moments });
        }
        OptimizerState::new(R::NAME, &saved)
    }

    fn restore(&mut self, state: &OptimizerState) -> Result<(), StateError> {
        let saved: Saved = state.read(R::NAME)?;
        let mut moments: Moments<E, D> = std::array::from_fn(|_| Gradients::leaky());
        for index in 0..saved.tensors.len().max(self.slots.len()) {
            let found = saved.tensors.get(index);
            let slot = self.slots.get(index);
            let fitting = found.zip(slot).filter(|(found, slot)| {
                found.moments.len() == R::MOMENTS.len()
                    && found.moments.iter().zip(R::MOMENTS).all(|((name, values), expected)| {
                        name == expected.0 && values.len() == slot.len()
                    })
            });
            let Some((found, slot)) = fitting else {
                return Err(StateError::Tensor {
                    index,
                    found: found.map_or("nothing".into(), SavedTensor::describe),
                    expected: slot.map_or("nothing".into(), |slot| {
                        let names: Vec<_> = R::MOMENTS.iter().map(|(name, _)| *name).collect();
                        describe(&slot.name, &names, slot.len())
                    }),
                });
            };
            for ((_, values), moment) in found.moments.iter().zip(&mut moments) {
                // A value that an `f64` holds may still be too large for the model's type.
                let values = values
                    .iter()
                    .map(|&v| E::from_f64(v).filter(|v| v.to_f64().is_some_and(f64::is_finite)))
                    .collect::<Option<Vec<E>>>()
                    .ok_or_else(|| StateError::NonFinite { tensor: found.name.clone() })?;
                write(moment, &slot.key, &values)?;
            }
        }
        self.moments = moments;
        self.step = saved.step;
        Ok(())
    }
}

/// What is saved: moments as `f64`, which holds every `f32` exactly.
#[derive(Serialize, Deserialize)]
struct Saved {
    step: u64,
    tensors: Vec<SavedTensor>,
}

#[derive(Serialize, Deserialize)]
struct SavedTensor {
    name: String,
    moments: Vec<(String, Vec<f64>)>,
}

impl SavedTensor {
    fn describe(&self) -> String {
        let names: Vec<_> = self.moments.iter().map(|(name, _)| name.as_str()).collect();
        let length = self.moments.first().map_or(0, |(_, values)| values.len());
        describe(&self.name, &names, length)
    }
}

fn describe(tensor: &str, moments: &[&str], length: usize) -> String {
    format!("{tensor} ({length} values of {})", moments.join(", "))
}

/// Lists the trainable tensors.
struct Slots<E: Dtype, D: Device<E>>(Vec<Slot<E, D>>);

impl<E: Dtype, D: Device<E>> TensorVisitor<E, D> for Slots<E, D> {
    type Viewer = (ViewTensorRef, ViewTensorName);
    type Err = NetworkError;
    type E2 = E;
    type D2 = D;

    fn visit<S: Shape>(
        &mut self,
        options: TensorOptions<S, E, D>,
        (tensor, name): (&Tensor<S, E, D>, String),
    ) -> Result<Option<Tensor<S, E, D>>, NetworkError> {
        if options.do_gradient_update {
            let length = (tensor.shape().num_elements(),);
            let key = tensor.device().try_zeros_like(&length).map_err(NetworkError::device)?;
            self.0.push(Slot { name, key });
        }
        Ok(None)
    }
}

/// Computes an update beside the model.
struct Plan<'a, R, E: Dtype, D: Device<E>> {
    rule: &'a R,
    step: i32,
    slots: &'a [Slot<E, D>],
    visited: usize,
    given: &'a Gradients<E, D>,
    /// A copy of `given`: dfdx lends out the values of a mutable one only.
    gradients: Gradients<E, D>,
    moments: Moments<E, D>,
    updated: Vec<Box<dyn Any>>,
    missing: Vec<String>,
    unused: UnusedTensors,
}

impl<R: Rule<E, D>, E: Dtype, D: Device<E>> TensorVisitor<E, D> for Plan<'_, R, E, D> {
    type Viewer = (ViewTensorRef, ViewTensorName);
    type Err = UpdateError;
    type E2 = E;
    type D2 = D;

    fn visit<S: Shape>(
        &mut self,
        options: TensorOptions<S, E, D>,
        (tensor, name): (&Tensor<S, E, D>, String),
    ) -> Result<Option<Tensor<S, E, D>>, UpdateError> {
        if !options.do_gradient_update {
            return Ok(None);
        }
        let index = self.visited;
        self.visited += 1;
        let Some(slot) = self.slots.get(index) else { return Ok(None) };
        if is_missing(options, tensor, self.given)? {
            self.missing.push(name);
            self.unused.add(tensor);
            return Ok(None);
        }
        if !is_finite(&self.given.get(tensor)) {
            return Err(UpdateError::NonFiniteGradient { tensor: name });
        }
        let gradient = self.gradients.get_or_alloc_mut(tensor).map_err(NetworkError::device)?;
        let (stored, expected) = (Storage::<E>::len(tensor.device(), gradient), slot.len());
        if stored != expected {
            return Err(NetworkError::SharedStorage { tensor: name, stored, expected }.into());
        }
        let mut updated = tensor.clone();
        self.rule
            .step(self.step, &mut updated, &slot.key, &mut self.moments, gradient)
            .map_err(NetworkError::device)?;
        let moments = self.moments.iter().take(R::MOMENTS.len());
        if !is_finite(&updated) || !moments.into_iter().all(|m| is_finite(&m.get(&slot.key))) {
            return Err(UpdateError::NonFiniteResult { tensor: name });
        }
        self.updated.push(Box::new(updated));
        Ok(None)
    }
}

/// Puts a computed update in place.
struct Commit {
    updated: std::vec::IntoIter<Box<dyn Any>>,
}

impl<E: Dtype, D: Device<E>> TensorVisitor<E, D> for Commit {
    type Viewer = ViewTensorMut;
    type Err = UpdateError;
    type E2 = E;
    type D2 = D;

    fn visit<S: Shape>(
        &mut self,
        options: TensorOptions<S, E, D>,
        tensor: &mut Tensor<S, E, D>,
    ) -> Result<Option<Tensor<S, E, D>>, UpdateError> {
        if options.do_gradient_update {
            let updated = self.updated.next().and_then(|updated| updated.downcast().ok());
            // The tensors are visited as they were a moment ago.
            debug_assert!(updated.is_some());
            if let Some(updated) = updated {
                *tensor = *updated;
            }
        }
        Ok(None)
    }
}

/// Whether a backward pass has not reached a tensor.
///
/// dfdx's checked read is private, and its public one panics. So one of its own
/// optimizers is asked to update a copy of the tensor by nothing: it reports a
/// gradient that is not there.
fn is_missing<S: Shape, E: Dtype, D: Device<E>>(
    options: TensorOptions<S, E, D>,
    tensor: &Tensor<S, E, D>,
    gradients: &Gradients<E, D>,
) -> Result<bool, NetworkError> {
    let still = SgdConfig { lr: 0.0, momentum: None, weight_decay: None };
    let mut sgd = Sgd::<(), E, D>::new(&(), still);
    let mut visitor = (&mut sgd, gradients, UnusedTensors::default());
    visitor.visit(options, &mut tensor.clone()).map_err(NetworkError::device)?;
    Ok(!visitor.2.is_empty())
}

fn is_finite<S: Shape, E: Dtype, D: Device<E>>(tensor: &Tensor<S, E, D>) -> bool {
    tensor.as_vec().iter().all(|value| value.to_f64().is_some_and(f64::is_finite))
}

/// Writes the values that belong to `key`.
fn write<E: Dtype, D: Device<E>>(
    moment: &mut Gradients<E, D>,
    key: &Key<E, D>,
    values: &[E],
) -> Result<(), NetworkError> {
    let storage = moment.get_or_alloc_mut(key).map_err(NetworkError::device)?;
    // The only way that dfdx has to write into gradients: it "draws" the values.
    let next = Sequence { values, position: Cell::new(0) };
    SampleTensor::<E>::try_fill_with_distr(key.device(), storage, next)
        .map_err(NetworkError::device)
}

/// A distribution that gives the values of a slice, in order.
struct Sequence<'a, E> {
    values: &'a [E],
    position: Cell<usize>,
}

impl<E: Dtype> Distribution<E> for Sequence<'_, E> {
    fn sample<G: Rng + ?Sized>(&self, _rng: &mut G) -> E {
        let position = self.position.get();
        self.position.set(position + 1);
        self.values.get(position).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use dfdx::optim::{Adam, Momentum, RMSprop, WeightDecay};
    use dfdx::prelude::*;

    use super::*;
    use crate::network::{flatten, Built};

    #[lopt::network]
    struct Mlp {
        hidden: Linear<3, 5>,
        activation: ReLU,
        output: Linear<5, 2>,
    }

    /// Thirty updates by both, on the same gradients: equal to the last bit.
    fn same_as_dfdx<R, O>(
        adapter: impl Fn(&Built<Mlp, f32, Cpu>) -> Adapter<R, Built<Mlp, f32, Cpu>, f32, Cpu>,
        theirs: impl Fn(&Built<Mlp, f32, Cpu>) -> O,
    ) where
        R: Rule<f32, Cpu>,
        O: Optimizer<Built<Mlp, f32, Cpu>, Cpu, f32>,
    {
        let dev = Cpu::seed_from_u64(1);
        let (x, y) = (dev.sample_normal::<Rank2<16, 3>>(), dev.sample_normal::<Rank2<16, 2>>());
        let mut a = dev.build_module::<Mlp, f32>();
        let mut b = a.clone();
        let (mut adapter, mut theirs) = (adapter(&a), theirs(&b));
        for _ in 0..30 {
            let gradients = |model: &Built<Mlp, f32, Cpu>| {
                mse_loss(model.forward(x.trace(model.alloc_grads())), y.clone()).backward()
            };
            let (for_a, for_b) = (gradients(&a), gradients(&b));
            adapter.try_update(&mut a, Some(&for_a)).unwrap();
            theirs.update(&mut b, &for_b).unwrap();
            let bits = |model| flatten(model).unwrap().into_iter().map(f32::to_bits);
            assert!(bits(&a).eq(bits(&b)));
        }
    }

    #[test]
    fn sgd_is_that_of_dfdx() {
        let decays = [None, Some(WeightDecay::L2(0.1)), Some(WeightDecay::Decoupled(0.1))];
        let momenta = [None, Some(Momentum::Classic(0.9)), Some(Momentum::Nesterov(0.9))];
        for weight_decay in decays {
            for momentum in momenta {
                let config = SgdConfig { lr: 0.05, momentum, weight_decay };
                same_as_dfdx(
                    |model| Adapter::sgd(model, config).unwrap(),
                    |model| Sgd::new(model, config),
                );
            }
        }
    }

    #[test]
    fn adam_is_that_of_dfdx() {
        for weight_decay in [None, Some(WeightDecay::L2(0.1)), Some(WeightDecay::Decoupled(0.1))] {
            let config = AdamConfig { lr: 0.05, weight_decay, ..Default::default() };
            same_as_dfdx(
                |model| Adapter::adam(model, config).unwrap(),
                |model| Adam::new(model, config),
            );
        }
    }

    #[test]
    fn rmsprop_is_that_of_dfdx() {
        for centered in [false, true] {
            for momentum in [None, Some(0.9)] {
                let config = RMSpropConfig { centered, momentum, ..Default::default() };
                same_as_dfdx(
                    |model| Adapter::rmsprop(model, config).unwrap(),
                    |model| RMSprop::new(model, config),
                );
            }
        }
    }

    #[test]
    fn a_state_of_another_model_is_refused() {
        let dev = Cpu::default();
        let mut small =
            Adapter::adam(&dev.build_module::<Linear<2, 1>, f32>(), AdamConfig::default()).unwrap();
        let large =
            Adapter::adam(&dev.build_module::<Linear<3, 1>, f32>(), AdamConfig::default()).unwrap();
        let error = small.restore(&large.state().unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the state of tensor 0 is `weight (3 values of moment1, moment2)`, \
             expected `weight (2 values of moment1, moment2)`"
        );
    }

    #[test]
    fn a_state_of_a_wider_dtype_that_does_not_fit_is_refused() {
        let dev = Cpu::default();
        let mut model = dev.build_module::<Linear<1, 1>, f64>();
        let mut wide = Adapter::sgd(&model, SgdConfig { lr: 1e-300, ..momentum() }).unwrap();
        let gradients = (model.forward(dev.tensor([1e200]).leaky_trace()) * 1e100).mean();
        wide.try_update(&mut model, Some(&gradients.backward())).unwrap();
        let narrow = dev.build_module::<Linear<1, 1>, f32>();
        let mut narrow = Adapter::sgd(&narrow, momentum()).unwrap();
        let error = narrow.restore(&wide.state().unwrap()).unwrap_err();
        assert!(matches!(error, StateError::NonFinite { tensor } if tensor == "weight"));
    }

    fn momentum() -> SgdConfig {
        SgdConfig { lr: 0.1, momentum: Some(Momentum::Classic(0.9)), weight_decay: None }
    }
}
