//! Layers that are applied, and that optimizers leave alone.
//!
//! What `#[lopt::network]` writes refers to this module. Not a public interface.

use std::marker::PhantomData;

use bytemuck::TransparentWrapper;
use dfdx::nn::tensor_collection::{ModuleFields, ScalarOptions};
use dfdx::nn::{ModuleVisitor, TensorCollection, TensorOptions};
use dfdx::shapes::{Dtype, Shape};
use dfdx::tensor::Tensor;
use dfdx::tensor_ops::Device;
use num_traits::NumCast;

/// A field that is a layer whose tensors optimizers do not update.
///
/// The field itself is the plain layer. Only visitors see it as [`Frozen`], and
/// so all that it is made of: what a visitor is told about a tensor is up to
/// the type that holds it.
pub struct FrozenField<'a, R, W, F> {
    name: &'a str,
    get_ref: R,
    get_mut: W,
    marker: PhantomData<F>,
}

impl<'a, R, W, F> FrozenField<'a, R, W, F> {
    /// The field of this name, and how to come to it.
    pub fn new<M>(name: &'a str, get_ref: R, get_mut: W) -> Self
    where
        R: FnMut(&M) -> &F,
        W: FnMut(&mut M) -> &mut F,
    {
        Self { name, get_ref, get_mut, marker: PhantomData }
    }
}

impl<R, W, M, F, E, D> ModuleFields<M, E, D> for FrozenField<'_, R, W, F>
where
    R: FnMut(&M) -> &F,
    W: FnMut(&mut M) -> &mut F,
    M: TensorCollection<E, D>,
    F: TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    type Options<E2: Dtype, D2: Device<E2>> = Option<F::To<E2, D2>>;
    type Output<E2: Dtype, D2: Device<E2>> = F::To<E2, D2>;

    fn visit_fields<V: ModuleVisitor<M, E, D>>(
        mut self,
        visitor: &mut V,
    ) -> Result<Self::Options<V::E2, V::D2>, V::Err> {
        let built = visitor.visit_module(
            self.name,
            |module| Frozen::wrap_ref((self.get_ref)(module)),
            |module| Frozen::wrap_mut((self.get_mut)(module)),
        )?;
        Ok(built.map(Frozen::peel))
    }

    fn handle_options<E2: Dtype, D2: Device<E2>>(
        options: Self::Options<E2, D2>,
    ) -> Option<Self::Output<E2, D2>> {
        options
    }
}

/// A layer as visitors are to see it.
#[repr(transparent)]
pub struct Frozen<F>(F);

// SAFETY: the type is `repr(transparent)` and holds nothing but `F`.
#[allow(unsafe_code)]
unsafe impl<F> TransparentWrapper<F> for Frozen<F> {}

impl<F, E, D> TensorCollection<E, D> for Frozen<F>
where
    F: TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    type To<E2: Dtype, D2: Device<E2>> = Frozen<F::To<E2, D2>>;

    fn iter_tensors<V: ModuleVisitor<Self, E, D>>(
        visitor: &mut V,
    ) -> Result<Option<Self::To<V::E2, V::D2>>, V::Err> {
        Ok(F::iter_tensors(&mut Freezing(visitor))?.map(Frozen))
    }
}

/// A visitor that has come to a frozen layer, as the layer is to see it.
struct Freezing<'a, V>(&'a mut V);

impl<V, F, E, D> ModuleVisitor<F, E, D> for Freezing<'_, V>
where
    V: ModuleVisitor<Frozen<F>, E, D>,
    F: TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    type Err = V::Err;
    type E2 = V::E2;
    type D2 = V::D2;

    fn visit_module<G, GetRef, GetMut>(
        &mut self,
        name: &str,
        mut get_ref: GetRef,
        mut get_mut: GetMut,
    ) -> Result<Option<G::To<V::E2, V::D2>>, V::Err>
    where
        GetRef: FnMut(&F) -> &G,
        GetMut: FnMut(&mut F) -> &mut G,
        G: TensorCollection<E, D>,
    {
        let built = self.0.visit_module(
            name,
            |frozen| Frozen::wrap_ref(get_ref(&frozen.0)),
            |frozen| Frozen::wrap_mut(get_mut(&mut frozen.0)),
        )?;
        Ok(built.map(Frozen::peel))
    }

    fn visit_tensor<S: Shape, GetRef, GetMut>(
        &mut self,
        name: &str,
        mut get_ref: GetRef,
        mut get_mut: GetMut,
        mut options: TensorOptions<S, E, D>,
    ) -> Result<Option<Tensor<S, V::E2, V::D2>>, V::Err>
    where
        GetRef: FnMut(&F) -> &Tensor<S, E, D>,
        GetMut: FnMut(&mut F) -> &mut Tensor<S, E, D>,
    {
        options.do_gradient_update = false;
        self.0.visit_tensor(
            name,
            |frozen| get_ref(&frozen.0),
            |frozen| get_mut(&mut frozen.0),
            options,
        )
    }

    fn visit_scalar<N, GetRef, GetMut>(
        &mut self,
        name: &str,
        mut get_ref: GetRef,
        mut get_mut: GetMut,
        options: ScalarOptions<N>,
    ) -> Result<Option<N>, V::Err>
    where
        N: NumCast,
        GetRef: FnMut(&F) -> &N,
        GetMut: FnMut(&mut F) -> &mut N,
    {
        self.0.visit_scalar(
            name,
            |frozen| get_ref(&frozen.0),
            |frozen| get_mut(&mut frozen.0),
            options,
        )
    }

    fn visit_fields<M: ModuleFields<F, E, D>>(
        &mut self,
        fields: M,
        build: impl FnOnce(M::Output<V::E2, V::D2>) -> F::To<V::E2, V::D2>,
    ) -> Result<Option<F::To<V::E2, V::D2>>, V::Err> {
        let options = fields.visit_fields(self)?;
        Ok(M::handle_options(options).map(build))
    }
}
