//! Following units from the layers that produce them to those that read them.

use super::units::{Groups, Place, Units, Value};
use super::{Layout, LayoutError, Parts, Role, TensorPart};

/// What flows from one layer into the next, at one moment of the description
/// of a network; see [`LayoutBuilder::flow`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    value: Value,
    /// Number of layers before it: what tells it apart from other flows.
    at: usize,
}

/// Builds a [`Layout`], layer by layer, in the order of the forward pass.
///
/// It follows the units from the layer that produces them to the layer that
/// reads them. Whatever it is not told about breaks the thread: the units stay
/// out of every group, and nothing is guessed.
///
/// # Examples
/// A convolutional network with a residual block:
/// ```
/// use lopt::layout::LayoutBuilder;
///
/// let mut builder = LayoutBuilder::new();
/// builder.scope("stem", |b| b.conv2d("Conv2D<3>", 1, 16, 3, 1, true));
/// builder.unitwise("ReLU");
/// builder.residual(|b| {
///     b.scope("conv", |b| b.conv2d("Conv2D<3>", 16, 16, 3, 1, true));
///     b.unitwise("ReLU");
/// });
/// builder.flatten("Flatten2D");
/// builder.scope("output", |b| b.linear(16 * 7 * 7, 10, true));
///
/// let layout = builder.finish()?;
/// let group = &layout.groups()[0]; // on both sides of the skip
/// assert_eq!((group.name.as_str(), group.units), ("stem", 16));
/// assert_eq!(group.axes.last().unwrap().block, 7 * 7);
/// # Ok::<(), lopt::layout::LayoutError>(())
/// ```
#[derive(Clone, Debug)]
pub struct LayoutBuilder {
    tensors: Vec<TensorPart>,
    groups: Groups,
    layers: Vec<String>,
    value: Value,
    prefix: Vec<String>,
    frozen: bool,
}

impl Default for LayoutBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LayoutBuilder {
    /// An empty layout, before the first layer.
    pub fn new() -> Self {
        Self {
            tensors: Vec::new(),
            groups: Groups::default(),
            layers: Vec::new(),
            value: Value::Fixed,
            prefix: Vec::new(),
            frozen: false,
        }
    }

    /// Runs `describe` with `name` put before every tensor name within.
    pub fn scope(&mut self, name: &str, describe: impl FnOnce(&mut Self)) {
        self.prefix.push(name.to_owned());
        describe(self);
        self.prefix.pop();
    }

    /// Runs `describe`, whose tensors are frozen: they are not trained and not
    /// in the flat vector, and units that they produce, scale or read are in no
    /// group.
    pub fn frozen(&mut self, describe: impl FnOnce(&mut Self)) {
        let outer = std::mem::replace(&mut self.frozen, true);
        describe(self);
        self.frozen = outer;
    }

    /// Runs `describe` for layers that are applied nobody knows where: their
    /// units are in no group, and the next layer reads what it would without them.
    pub fn unwired(&mut self, describe: impl FnOnce(&mut Self)) {
        self.layer("Unwired(");
        let (value, first) = (self.take(), self.groups.count());
        describe(self);
        self.groups.pin_since(first);
        self.value = value;
        self.layer(")");
    }

    /// Appends a tensor that is attached to no group.
    ///
    /// If it does more to the units that arrive than to treat them all alike,
    /// the layer is [`opaque`](Self::opaque).
    pub fn tensor(&mut self, name: &str, shape: &[usize], role: Role) {
        self.push(name, shape, role);
    }

    /// Notes the kind of a layer, with everything that changes its function.
    pub fn layer(&mut self, kind: &str) {
        self.layers.push(kind.to_owned());
    }

    /// A linear layer: reads the units that arrive, produces `outputs` new ones.
    ///
    /// # Shapes
    /// `weight [outputs, inputs]`, `bias [outputs]`.
    pub fn linear(&mut self, inputs: usize, outputs: usize, bias: bool) {
        self.layer(if bias { "Linear" } else { "UnbiasedLinear" });
        let weight = self.push("weight", &[outputs, inputs], Role::Weight);
        self.read(weight, 1, Place::Vector);
        let mut own = vec![(weight, 0)];
        if bias {
            own.push((self.push("bias", &[outputs], Role::Bias), 0));
        }
        self.produce(outputs, Place::Vector, Some(outputs), &own);
    }

    /// A convolution with square kernels: reads the channels that arrive,
    /// produces `outputs` new ones.
    ///
    /// With `groups` above 1 outputs keep to the channels that they are
    /// computed from: the channels of one convolution group, before and after,
    /// become one unit (in a depthwise convolution, every channel and its
    /// outputs). Such units have no sign symmetry.
    ///
    /// `kind` is to name what else changes the function: stride, padding, groups.
    ///
    /// # Shapes
    /// `weight [outputs, inputs / groups, kernel, kernel]`, `bias [outputs]`.
    pub fn conv2d(
        &mut self,
        kind: &str,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        groups: usize,
        bias: bool,
    ) {
        self.layer(kind);
        let shape = [outputs, inputs.checked_div(groups).unwrap_or(0), kernel, kernel];
        let weight = self.push("weight", &shape, Role::Weight);
        if groups == 1 {
            self.read(weight, 1, Place::Image);
        }
        let mut own = vec![(weight, 0)];
        if bias {
            own.push((self.push("bias", &[outputs], Role::Bias), 0));
        }
        if groups == 1 {
            self.produce(outputs, Place::Image, Some(outputs), &own);
        } else {
            self.grouped(groups, outputs, &own);
        }
    }

    /// A table with one row for each word: produces `units` units.
    ///
    /// # Shapes
    /// `weight [words, units]`.
    pub fn embedding(&mut self, words: usize, units: usize) {
        self.layer("Embedding");
        let weight = self.push("weight", &[words, units], Role::Weight);
        self.pin_value();
        self.produce(units, Place::Vector, Some(units), &[(weight, 1)]);
    }

    /// Attention with several heads: reads the units that arrive (or, of three
    /// values side by side, queries, keys and values), produces `units` new ones.
    /// The heads are a group of their own.
    ///
    /// # Shapes
    /// `w_q.weight [keys, units]`, `w_q.bias [keys]`, `w_k` likewise,
    /// `w_v.weight [values, units]`, `w_v.bias [values]`,
    /// `w_o.weight [units, values]`, `w_o.bias [units]`; heads are blocks of
    /// neighbouring rows.
    pub fn attention(
        &mut self,
        kind: &str,
        units: usize,
        heads: usize,
        keys: usize,
        values: usize,
    ) {
        self.layer(&format!("{kind}<{heads}>"));
        let arriving = match self.take() {
            Value::Tuple(parts) if parts.len() == 3 => parts,
            value => vec![value; 3],
        };
        let mut own = Vec::new();
        let maps = [("w_q", keys), ("w_k", keys), ("w_v", values)];
        for ((name, outputs), value) in maps.into_iter().zip(arriving) {
            self.value = value;
            self.scope(name, |b| {
                let weight = b.push("weight", &[outputs, units], Role::Weight);
                b.read(weight, 1, Place::Vector);
                own.extend([(weight, 0), (b.push("bias", &[outputs], Role::Bias), 0)]);
            });
        }
        self.produce(heads, Place::Vector, Some(values), &own);
        self.scope("w_o", |b| b.linear(values, units, true));
    }

    /// A normalisation over the units that arrive, with a scale and a shift: the
    /// mean and deviation are those of the units together.
    ///
    /// # Shapes
    /// `gamma [units]`, `beta [units]`.
    pub fn norm(&mut self, kind: &str, units: usize) {
        self.layer(kind);
        let scale = self.push("gamma", &[units], Role::Scale);
        let shift = self.push("beta", &[units], Role::Shift);
        self.attach(units, &[scale, shift], &[Place::Vector]);
        self.mix();
    }

    /// A normalisation of every unit by itself, over the batch (and the image),
    /// with a scale and a shift.
    ///
    /// Its running statistics belong to the units, but are no parameters and not
    /// in the flat vector: see [`symmetry`](crate::symmetry#batch-norms).
    ///
    /// # Shapes
    /// `scale [units]`, `bias [units]`.
    pub fn batch_norm(&mut self, kind: &str, units: usize) {
        self.layer(kind);
        let scale = self.push("scale", &[units], Role::Scale);
        let shift = self.push("bias", &[units], Role::Shift);
        self.attach(units, &[scale, shift], &[Place::Vector, Place::Image]);
    }

    /// A [`batch_norm`](Self::batch_norm) of the channels of images.
    pub fn batch_norm2d(&mut self, kind: &str, channels: usize) {
        if self.arriving(&[Place::Image]).is_none() {
            self.pin_value();
        }
        self.batch_norm(kind, channels);
    }

    /// A tensor with one value for each channel of an image that is added to it.
    ///
    /// # Shapes
    /// `bias [units]`.
    pub fn bias2d(&mut self, kind: &str, units: usize) {
        self.layer(kind);
        let bias = self.push("bias", &[units], Role::Bias);
        self.attach(units, &[bias], &[Place::Image]);
    }

    /// A tensor with one slope for each unit that arrives, of an activation.
    ///
    /// # Shapes
    /// `a [units]`.
    pub fn slopes(&mut self, kind: &str, units: usize) {
        self.layer(kind);
        let slopes = self.push("a", &[units], Role::Scale);
        self.attach(units, &[slopes], &[Place::Vector, Place::Image]);
        self.mix();
    }

    /// A layer without parameters that treats every unit alike and leaves it in
    /// its place, such as an elementwise activation or max pooling.
    pub fn unitwise(&mut self, kind: &str) {
        self.layer(kind);
        self.mix();
    }

    /// A [`unitwise`](Self::unitwise) layer that is odd in every unit: if a unit
    /// changes its sign, so does what becomes of it, and nothing else changes.
    /// `Tanh`, dropout and average pooling are.
    pub fn odd(&mut self, kind: &str) {
        self.layer(kind);
    }

    /// A layer without parameters on every channel of an image by itself, such
    /// as pooling; `odd` as in [`odd`](Self::odd), of an average.
    pub fn pool2d(&mut self, kind: &str, odd: bool) {
        self.layer(kind);
        if !odd {
            self.mix();
        }
        if self.arriving(&[Place::Image]).is_none() {
            self.pin_value();
        }
    }

    /// An image of units becomes a vector in which every unit is a block of
    /// neighbouring values.
    pub fn flatten(&mut self, kind: &str) {
        self.layer(kind);
        self.image_to_vector(|_| None);
    }

    /// An image of units becomes a vector of as many values, one for each unit;
    /// `odd` as in [`odd`](Self::odd), of an average.
    pub fn pool_global(&mut self, kind: &str, odd: bool) {
        self.layer(kind);
        if !odd {
            self.mix();
        }
        self.image_to_vector(|width| width);
    }

    /// A layer that mixes or moves units in a way that is not understood.
    pub fn opaque(&mut self, kind: &str) {
        self.layer(kind);
        self.pin_value();
    }

    /// A body whose output is added to its input: units on both sides of the
    /// skip are one group. Next to something whose order is fixed, such as the
    /// network's input, they are none.
    pub fn residual(&mut self, body: impl FnOnce(&mut Self)) {
        self.layer("Residual(");
        let skip = self.value.clone();
        body(self);
        self.join(skip);
        self.layer(")");
    }

    /// Two bodies with the same input whose outputs are added: the units of both
    /// are one group.
    pub fn parallel(&mut self, left: impl FnOnce(&mut Self), right: impl FnOnce(&mut Self)) {
        self.layer("Parallel(");
        let input = self.value.clone();
        left(self);
        let output = std::mem::replace(&mut self.value, input);
        self.layer("|");
        right(self);
        self.join(output);
        self.layer(")");
    }

    /// Bodies with the same input whose outputs lie side by side, as dfdx's
    /// `SplitInto`.
    pub fn split(&mut self, bodies: &[&dyn Fn(&mut Self)]) {
        let inputs = vec![self.flow(); bodies.len()];
        self.value = Value::Tuple(self.each("Split(", bodies, inputs));
    }

    /// Bodies with an input each, side by side, whose outputs are added, as
    /// dfdx's `AddInto`: the units of all are one group.
    pub fn add_into(&mut self, bodies: &[&dyn Fn(&mut Self)]) {
        let inputs = self.parts(bodies.len());
        let mut outputs = self.each("AddInto(", bodies, inputs).into_iter();
        self.value = outputs.next().unwrap_or(Value::Fixed);
        outputs.for_each(|output| self.join(output));
    }

    /// What flows into the next layer, to [`resume`](Self::resume) with it, or
    /// to [`add`](Self::add) it, later.
    pub fn flow(&self) -> Flow {
        Flow { value: self.value.clone(), at: self.layers.len() }
    }

    /// Lets the next layer read `flow` instead of the output of the last.
    pub fn resume(&mut self, flow: &Flow) {
        self.layer(&format!("@{}", flow.at));
        self.value = flow.value.clone();
    }

    /// Adds `flow` to the output of the last layer: the units of both are one
    /// group.
    pub fn add(&mut self, flow: &Flow) {
        self.layer(&format!("+@{}", flow.at));
        self.join(flow.value.clone());
    }

    /// Ends the network: units that nothing has read, or that arrive here, are
    /// outputs, whose order matters, and form no group.
    ///
    /// # Errors
    /// If the tensors or groups are not consistent.
    pub fn finish(mut self) -> Result<Layout, LayoutError> {
        self.pin_value();
        let groups = self.groups.finish();
        Layout::try_from(Parts { tensors: self.tensors, groups, layers: self.layers })
    }

    /// The values side by side that arrive; fixed ones if it is another number
    /// of them that does.
    pub(crate) fn parts(&mut self, count: usize) -> Vec<Flow> {
        let at = self.layers.len();
        match self.take() {
            Value::Tuple(parts) if parts.len() == count => {
                parts.into_iter().map(|value| Flow { value, at }).collect()
            }
            value => {
                self.groups.pin(&value);
                vec![Flow { value: Value::Fixed, at }; count]
            }
        }
    }

    /// Lets values side by side arrive at the next layer, or a single one.
    pub(crate) fn side_by_side(&mut self, parts: &[&Flow]) {
        let mut values: Vec<Value> = parts.iter().map(|part| part.value.clone()).collect();
        self.value = if values.len() == 1 { values.remove(0) } else { Value::Tuple(values) };
    }

    /// Describes bodies, noting that they are applied next to each other, and
    /// returns their outputs.
    fn each(&mut self, kind: &str, bodies: &[&dyn Fn(&mut Self)], inputs: Vec<Flow>) -> Vec<Value> {
        self.layer(kind);
        let mut outputs = Vec::with_capacity(bodies.len());
        for (body, input) in bodies.iter().zip(inputs) {
            self.value = input.value;
            body(self);
            outputs.push(self.take());
            self.layer("|");
        }
        self.layer(")");
        outputs
    }

    fn path(&self, name: &str) -> String {
        self.prefix.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join(".")
    }

    /// Index of the new tensor, none where it is frozen.
    fn push(&mut self, name: &str, shape: &[usize], role: Role) -> Option<usize> {
        if self.frozen {
            self.layer(&format!("Frozen {shape:?}"));
            return None;
        }
        self.tensors.push(TensorPart { name: self.path(name), shape: shape.to_vec(), role });
        Some(self.tensors.len() - 1)
    }

    fn take(&mut self) -> Value {
        std::mem::replace(&mut self.value, Value::Fixed)
    }

    /// The units that arrive, if they lie in one of `places`.
    fn arriving(&self, places: &[Place]) -> Option<Units> {
        match self.value {
            Value::Units(units) if places.contains(&units.place) => Some(units),
            _ => None,
        }
    }

    /// What arrives is used in a way that depends on the order of its units.
    fn pin_value(&mut self) {
        let value = self.take();
        self.groups.pin(&value);
    }

    /// What arrives is used in a way that depends on the signs of its units.
    fn mix(&mut self) {
        self.groups.no_signs(&self.value);
    }

    /// Adds an axis of a tensor to a group.
    fn axis(&mut self, group: usize, tensor: usize, axis: usize, produces: bool) {
        let length = self.tensors[tensor].shape[axis];
        self.groups.axis(group, length, tensor, axis, produces);
    }

    /// An axis of a tensor reads the units that arrive.
    fn read(&mut self, tensor: Option<usize>, axis: usize, place: Place) {
        match (self.arriving(&[place]), tensor) {
            (Some(units), Some(tensor)) => self.axis(units.group, tensor, axis, false),
            _ => self.pin_value(),
        }
    }

    /// New units: blocks on axes of tensors that compute them, all of which are
    /// in the flat vector, or else the units are fixed.
    fn produce(
        &mut self,
        units: usize,
        place: Place,
        width: Option<usize>,
        tensors: &[(Option<usize>, usize)],
    ) {
        let group = self.groups.begin(self.prefix.join("."), units);
        self.value = Value::Units(Units { group, place, width });
        for &(tensor, axis) in tensors {
            match tensor {
                Some(tensor) => self.axis(group, tensor, axis, true),
                None => self.groups.pin(&self.value),
            }
        }
    }

    /// Tensors `[length]` belong to the units that arrive.
    fn attach(&mut self, length: usize, tensors: &[Option<usize>], places: &[Place]) {
        let arriving = self.arriving(places).filter(|units| match units.width {
            Some(width) => width == length,
            None => true,
        });
        for tensor in tensors {
            match (arriving, *tensor) {
                (Some(units), Some(tensor)) => self.axis(units.group, tensor, 0, true),
                _ => self.groups.pin(&self.value),
            }
        }
    }

    /// Outputs of a convolution in `groups` groups: they keep to the units that
    /// they are computed from.
    fn grouped(&mut self, groups: usize, outputs: usize, own: &[(Option<usize>, usize)]) {
        let Some(units) = self.arriving(&[Place::Image]) else {
            return self.pin_value();
        };
        let count = self.groups.units(units.group);
        let kept = if groups > 0 && count.is_multiple_of(groups) { groups } else { count };
        if groups == 0
            || !groups.is_multiple_of(kept)
            || own.iter().any(|(tensor, _)| tensor.is_none())
        {
            return self.pin_value();
        }
        self.groups.coarsen(units.group, kept);
        self.mix();
        for &(tensor, axis) in own {
            if let Some(tensor) = tensor {
                self.axis(units.group, tensor, axis, true);
            }
        }
        self.value = Value::Units(Units { width: Some(outputs), ..units });
    }

    fn image_to_vector(&mut self, width: impl FnOnce(Option<usize>) -> Option<usize>) {
        match self.arriving(&[Place::Image]) {
            Some(units) => {
                let width = width(units.width);
                self.value = Value::Units(Units { place: Place::Vector, width, ..units });
            }
            None => self.pin_value(),
        }
    }

    /// Adds `other` to what arrives.
    fn join(&mut self, other: Value) {
        let value = self.take();
        self.value = self.groups.join(value, other);
    }
}
