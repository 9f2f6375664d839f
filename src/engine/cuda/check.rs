//! Compares a device with the CPU engine, operation by operation.
//!
//! Both get the same values in buffers of the same plan, do one operation, and must then agree
//! everywhere: what an operation must not touch is compared as well. Errors are the largest
//! difference, as a share of the largest value that the operation has written.

use super::backend::Backend;
use super::buffers::{Cuda, Lengths};
use crate::engine::cpu::{self, padded, AlignedBuffer, Cpu};
use crate::engine::{
    AttentionShape, DeviceError, EdgeShape, EdgeSlots, LayerNorm, Linear, Math, Ops, Slot, Write,
};

/// One comparison of a device with the CPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What was compared.
    pub name: String,
    /// How far they are apart, relative to the largest value.
    pub error: f64,
    /// How far they may be.
    pub tolerance: f64,
}

impl Check {
    /// Whether the device agrees with the CPU.
    pub fn passes(&self) -> bool {
        // False for what is not a number.
        self.error <= self.tolerance
    }
}

/// Runs every kernel, and whole models, on a GPU and on the CPU.
///
/// Models are compared by output, gradient, parameters after steps of training, and samples, in
/// every [`Math`]; batches that the GPU draws with those of the host. It takes some seconds.
///
/// # Errors
/// If the GPU cannot be used, or a call fails. A wrong result is a [`Check`] that does not pass.
///
/// # Examples
/// ```
/// use lopt::engine::cuda::self_test;
///
/// match self_test(0) {
///     Ok(checks) => assert!(checks.iter().all(|check| check.passes()), "{checks:?}"),
///     Err(problem) => println!("skipped: {problem}"),
/// }
/// ```
pub fn self_test(index: usize) -> Result<Vec<Check>, DeviceError> {
    let mut checks = Vec::new();
    for math in Math::ALL {
        checks.extend(operations(super::Gpu::open(index)?, math)?);
    }
    checks.extend(super::noise::checks(super::Gpu::open(index)?)?);
    for math in Math::ALL {
        checks.extend(crate::gpt::device_checks(|| super::Gpu::open(index), math, true)?);
    }
    checks.extend(crate::gpt::trainer_checks(|| super::Gpu::open(index))?);
    Ok(checks)
}

/// How far products may be apart that this precision rounds the factors of.
pub(crate) fn tolerance(math: Math) -> f64 {
    match math {
        Math::F32 => 2e-5,
        Math::Tf32 => 4e-3,
        Math::Bf16 => 3e-2,
    }
}

/// Hands out slots, as a model's plan does.
#[derive(Default)]
struct Plan {
    wide: usize,
    narrow: usize,
    /// Values of the CPU's scratch memory.
    scratch: usize,
    mixed: bool,
    slots: Vec<(Slot, usize)>,
}

impl Plan {
    fn take(&mut self, rows: usize, width: usize) -> Slot {
        let slot = Slot { offset: self.wide, width, narrow: false };
        self.wide += (rows * width).next_multiple_of(16);
        self.slots.push((slot, rows));
        slot
    }

    /// What each engine uses in its own way, and is not compared.
    fn take_scratch(&mut self, rows: usize, width: usize) -> Slot {
        let slot = self.take(rows, width);
        self.slots.pop();
        slot
    }

    fn take_narrow(&mut self, rows: usize, width: usize) -> Slot {
        if !self.mixed {
            return self.take(rows, width);
        }
        let slot = Slot { offset: self.narrow, width, narrow: true };
        self.narrow += (rows * width).next_multiple_of(16);
        self.slots.push((slot, rows));
        slot
    }
}

/// Values from a formula, between -1 and 1.
fn values(length: usize, seed: usize) -> Vec<f32> {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

/// The CPU's buffers and the device's.
struct Pair<B> {
    device: Cuda<B>,
    plan: Plan,
    parameters: Vec<f32>,
    gradient: Vec<f32>,
    /// The CPU's, with narrow slots behind the others.
    arena: AlignedBuffer<f32>,
    scratch: AlignedBuffer<f32>,
    math: Math,
    checks: Vec<Check>,
}

fn narrowed(values: &[f32]) -> Vec<half::bf16> {
    values.iter().map(|&value| half::bf16::from_f32(value)).collect()
}

impl<B: Backend> Pair<B> {
    fn new(backend: B, math: Math, plan: Plan, parameters: usize) -> Result<Self, DeviceError> {
        let lengths =
            Lengths { parameters, arena: plan.wide, narrow_arena: plan.narrow, training: true };
        let device = Cuda::new(backend, math, lengths)?;
        let memory = |_| DeviceError::Call { call: "the CPU", problem: "no memory".into() };
        let arena = AlignedBuffer::new(plan.wide + plan.narrow).map_err(memory)?;
        let scratch = AlignedBuffer::new(plan.scratch).map_err(memory)?;
        let mut parameters = values(parameters, 1);
        if math == Math::Bf16 {
            // So that both use the same.
            parameters = narrowed(&parameters).iter().map(|value| value.to_f32()).collect();
        }
        let gradient = Vec::new();
        Ok(Self { device, plan, parameters, gradient, arena, scratch, math, checks: Vec::new() })
    }

    /// The slot in the CPU's arena.
    fn on_cpu(&self, slot: Slot) -> Slot {
        let offset = if slot.narrow { self.plan.wide + slot.offset } else { slot.offset };
        Slot { offset, ..slot }
    }

    /// Fills both with the same values.
    fn reset(&mut self, seed: usize) -> Result<(), DeviceError> {
        self.gradient = values(self.parameters.len(), seed + 100);
        let fresh = values(self.plan.wide + self.plan.narrow, seed);
        let (wide, narrow) = fresh.split_at(self.plan.wide);
        let narrow = narrowed(narrow);
        let arena = self.arena.values_mut();
        arena[..wide.len()].copy_from_slice(wide);
        for (to, from) in arena[wide.len()..].iter_mut().zip(&narrow) {
            *to = from.to_f32();
        }
        let device = &mut self.device;
        let backend = &mut device.backend;
        backend.upload(device.arena, bytemuck::cast_slice(wide))?;
        if !narrow.is_empty() {
            backend.upload(device.narrow_arena, bytemuck::cast_slice(&narrow))?;
        }
        backend.upload(device.parameters, bytemuck::cast_slice(&self.parameters))?;
        if device.narrow_parameters != 0 {
            let parameters = narrowed(&self.parameters);
            backend.upload(device.narrow_parameters, bytemuck::cast_slice(&parameters))?;
        }
        backend.upload(device.gradient, bytemuck::cast_slice(&self.gradient))
    }

    /// Does the same on both and compares everything.
    fn compare(
        &mut self,
        name: &str,
        tolerance: f64,
        on_cpu: impl FnOnce(&mut Cpu<'_, f32>, &dyn Fn(Slot) -> Slot),
        on_device: impl FnOnce(&mut Cuda<B>),
    ) -> Result<(), DeviceError> {
        self.reset(self.checks.len() + 7)?;
        let wide = self.plan.wide;
        let place = move |slot: Slot| {
            let offset = if slot.narrow { wide + slot.offset } else { slot.offset };
            Slot { offset, ..slot }
        };
        let before = self.arena.values().to_vec();
        let gradient_before = self.gradient.clone();
        let mut cpu = Cpu {
            parameters: &self.parameters,
            gradient: &mut self.gradient,
            arena: self.arena.values_mut(),
            scratch: self.scratch.values_mut(),
            // The device adds to the gradient that is there, and so shall this.
            panels: None,
            first: false,
        };
        on_cpu(&mut cpu, &place);
        on_device(&mut self.device);
        self.device.check()?;

        let device = &mut self.device;
        let mut gradient = vec![0f32; self.parameters.len()];
        device.backend.download(device.gradient, bytemuck::cast_slice_mut(&mut gradient))?;
        let mut arena = vec![0f32; wide];
        device.backend.download(device.arena, bytemuck::cast_slice_mut(&mut arena))?;
        let mut narrow = vec![half::bf16::ZERO; self.plan.narrow];
        if !narrow.is_empty() {
            let at = device.narrow_arena;
            device.backend.download(at, bytemuck::cast_slice_mut(&mut narrow))?;
        }
        let mut worst = difference(&gradient, &self.gradient, &gradient_before);
        let slots = std::mem::take(&mut self.plan.slots);
        for &(slot, rows) in &slots {
            let own = self.on_cpu(slot).range(rows);
            let expected = &self.arena.values()[own.clone()];
            let found: Vec<f32> = match slot.narrow {
                true => narrow[slot.range(rows)].iter().map(|value| value.to_f32()).collect(),
                false => arena[slot.range(rows)].to_vec(),
            };
            worst = worst.max(difference(&found, expected, &before[own]));
        }
        self.plan.slots = slots;
        let name = format!("{name}, {}", self.math.name());
        self.checks.push(Check { name, error: worst, tolerance });
        Ok(())
    }
}

/// The largest difference between two buffers, relative to the largest value that changed. What
/// did not change on the CPU must not have changed at all; what is not a number is infinitely
/// far.
fn difference(found: &[f32], expected: &[f32], before: &[f32]) -> f64 {
    let changed = expected.iter().zip(before).filter(|(after, before)| after != before);
    let scale = changed.fold(0f64, |most, (after, _)| most.max(f64::from(after.abs())));
    let mut worst = 0f64;
    for (found, expected) in found.iter().zip(expected) {
        let error = f64::from(found - expected).abs();
        if error.is_nan() || (error > 0.0 && scale == 0.0) {
            return f64::INFINITY;
        }
        if error > 0.0 {
            worst = worst.max(error / scale);
        }
    }
    worst
}

fn slots_at(slots: EdgeSlots, at: &dyn Fn(Slot) -> Slot) -> EdgeSlots {
    EdgeSlots {
        edges: at(slots.edges),
        to: at(slots.to),
        from: at(slots.from),
        scratch: at(slots.scratch),
    }
}

/// Every operation of the engine.
pub(crate) fn operations<B: Backend>(backend: B, math: Math) -> Result<Vec<Check>, DeviceError> {
    let mut plan = Plan { mixed: math == Math::Bf16, ..Plan::default() };
    // Odd sizes, more than a tile, more than a piece.
    let (samples, tokens, outputs, width, heads) = (7, 21, 18, 40, 2);
    let (rows, values_in) = (samples * tokens, 13);
    let row = plan.take(samples, 50);
    let cut = plan.take(3 * samples, values_in);
    let columns = plan.take(samples, 24);
    let x = plan.take(rows, width);
    let y = plan.take(rows, width);
    let z = plan.take(rows, width);
    let stats = plan.take(rows, 2);
    let normed = plan.take_narrow(rows, width);
    let branch = plan.take_narrow(rows, width);
    let wide = plan.take_narrow(rows, 4 * width);
    let slope = plan.take_narrow(rows, 4 * width);
    let qkv = plan.take_narrow(rows, 3 * width);
    let dqkv = plan.take_narrow(rows, 3 * width);
    let dwide = plan.take_narrow(rows, 4 * width);
    let per_sample = plan.take(samples, width);
    let shape = AttentionShape { tokens, queries: tokens, heads, width };
    // How probabilities lie is each engine's own affair.
    let probabilities = plan.take_scratch(samples, heads * tokens * padded(tokens));
    plan.scratch = cpu::scratch_len(&shape);
    let target = plan.take(samples, 50);
    let entry = plan.take(1, 50);
    let weights = plan.take(samples, 1);
    let edge = EdgeShape { to: 3, from: 5, channels: 6, rank: 36 };
    let edges = plan.take(samples, edge.len());
    let to = plan.take(edge.to * samples, edge.rank);
    let from = plan.take(edge.from * samples, edge.channels * edge.rank);
    let edge_scratch = plan.take_scratch(1, edge.scratch_len());
    let gate = EdgeShape { rank: 2, ..edge };
    let gates = plan.take(gate.to * samples, 2);
    let dgates = plan.take(gate.to * samples, 2);
    let gated = plan.take(samples, 2 * gate.len());
    let dgated = plan.take(samples, 2 * gate.len());

    let norm = LayerNorm { scale: 3, shift: 3 + width, width };
    let encoder = Linear { weight: 100, bias: Some(1000), inputs: values_in, outputs: width };
    // At a place that is aligned, and one that is not.
    let square = Linear { weight: 1024, bias: Some(2701), inputs: width, outputs: width };
    let fused = Linear { weight: 4097, bias: None, inputs: width, outputs: 3 * width };
    let expand = Linear { weight: 9216, bias: Some(16_000), inputs: width, outputs: 4 * width };
    let contract = Linear { weight: 9216, bias: Some(16_001), inputs: 4 * width, outputs: width };
    let positions: Vec<u32> = (0..tokens as u32).map(|t| t / 3).collect();
    let embedding = 17_000;
    let table: Vec<u32> = (0..3 * values_in as u32).map(|i| (i * 7 + 3) % 50).collect();

    let mut pair = Pair::new(backend, math, plan, 18_000)?;
    let exact = 0.0;
    // Where results are kept in bf16, they differ in its last digit.
    let close = if math == Math::Bf16 { 1e-2 } else { 2e-5 };
    let product = tolerance(math);

    macro_rules! check {
        ($name:expr, $tolerance:expr, |$ops:ident, $at:ident| $body:expr) => {
            pair.compare(
                $name,
                $tolerance,
                |$ops, $at| {
                    let _ = $body;
                },
                |$ops| {
                    let $at = |slot: Slot| slot;
                    let _ = $body;
                },
            )?
        };
    }

    check!("gather", exact, |ops, at| ops.gather(&table, samples, at(row), at(cut)));
    check!("scatter_add", 1e-6, |ops, at| ops.scatter_add(&table, samples, at(cut), at(row)));
    check!("copy_columns", exact, |ops, at| {
        ops.copy_columns(samples, at(row), 19, at(columns))
    });
    check!("clear", exact, |ops, at| ops.clear(rows - 5, at(branch).skip(3)));
    check!("add_positions", 1e-6, |ops, at| {
        ops.add_positions(&positions, samples, embedding, at(x))
    });
    check!("positions_backward", close, |ops, at| {
        ops.positions_backward(&positions, samples, embedding, at(x))
    });
    check!("add_to_tokens", 1e-6, |ops, at| {
        ops.add_to_tokens(tokens, samples, at(per_sample), at(x))
    });
    check!("sum_tokens", close, |ops, at| ops.sum_tokens(tokens, samples, at(x), at(per_sample)));

    check!("layer_norm", close, |ops, at| {
        ops.layer_norm(rows, &norm, at(x), at(normed), at(stats))
    });
    check!("layer_norm to f32", 2e-5, |ops, at| {
        ops.layer_norm(rows - 3, &norm, at(x), at(y), at(stats))
    });
    for write in [Write::Set, Write::Add] {
        let name = |of: &str| format!("layer_norm_backward, {write:?}, {of}");
        check!(&name("bf16 to f32"), 4e-5, |ops, at| {
            ops.layer_norm_backward(rows, &norm, at(x), at(stats), at(branch), at(y), write)
        });
        check!(&name("f32 to bf16"), close, |ops, at| {
            ops.layer_norm_backward(rows, &norm, at(x), at(stats), at(y), at(branch), write)
        });
        check!(&name("f32"), 4e-5, |ops, at| {
            ops.layer_norm_backward(rows, &norm, at(x), at(stats), at(z), at(y), write)
        });
    }

    for own in [false, true] {
        pair.device.own_products = own;
        let name = |what: &str| format!("{what}{}", if own { ", own product" } else { "" });
        check!(&name("linear"), product, |ops, at| ops.linear(
            3 * samples,
            &encoder,
            at(cut),
            at(y)
        ));
        check!(&name("linear, narrow"), product, |ops, at| {
            ops.linear(rows, &fused, at(normed), at(qkv))
        });
        check!(&name("linear_add, elsewhere"), product, |ops, at| {
            ops.linear_add(rows, &square, at(normed), at(x), at(y))
        });
        check!(&name("linear_add, in place"), product, |ops, at| {
            ops.linear_add(rows, &contract, at(wide), at(y), at(y))
        });
        check!(&name("linear_gelu"), product, |ops, at| {
            ops.linear_gelu(rows, &expand, at(normed), at(wide), Some(at(slope)))
        });
        check!(&name("linear_gelu, no slope"), product, |ops, at| {
            ops.linear_gelu(rows, &expand, at(normed), at(wide), None)
        });
        check!(&name("linear_gelu_backward"), product, |ops, at| {
            ops.linear_gelu_backward(rows, &contract, at(wide), at(slope), at(y), at(dwide))
        });
        check!(&name("linear_backward"), product, |ops, at| {
            ops.linear_backward(rows, &expand, at(normed), at(wide), Some((at(branch), Write::Set)))
        });
        check!(&name("linear_backward, added"), product, |ops, at| {
            ops.linear_backward(rows, &square, at(normed), at(y), Some((at(branch), Write::Add)))
        });
        check!(&name("linear_backward, f32 of bf16"), product, |ops, at| {
            ops.linear_backward(3 * samples, &encoder, at(cut), at(branch), None)
        });
        check!(&name("linear_backward, f32"), product, |ops, at| {
            ops.linear_backward(rows, &square, at(x), at(y), Some((at(z), Write::Set)))
        });
    }

    for queries in [tokens, outputs] {
        let shape = AttentionShape { queries, ..shape };
        let name = |what: &str| format!("attention{what}, {queries} of {tokens} ask");
        check!(&name(""), close, |ops, at| {
            ops.attention(samples, &shape, at(qkv), at(probabilities), at(normed))
        });
        check!(&name("_backward"), close, |ops, at| {
            ops.attention(samples, &shape, at(qkv), at(probabilities), at(normed));
            ops.attention_backward(
                samples,
                &shape,
                at(qkv),
                at(probabilities),
                at(branch),
                at(dqkv),
            )
        });
    }

    let slots = EdgeSlots { edges, to, from, scratch: edge_scratch };
    check!("edge_sum", close, |ops, at| ops.edge_sum(samples, &edge, slots_at(slots, &at)));
    check!("edge_sum_transposed", close, |ops, at| {
        ops.edge_sum_transposed(samples, &edge, slots_at(slots, &at))
    });
    for write in [Write::Set, Write::Add] {
        check!(&format!("edge_product, {write:?}"), close, |ops, at| {
            ops.edge_product(samples, &edge, slots_at(slots, &at), write)
        });
    }
    check!("edge_gate", close, |ops, at| {
        ops.edge_gate(samples, &gate, at(gates), at(gated), at(edges))
    });
    for dfrom in [None, Some(dgated)] {
        check!(&format!("edge_gate_backward, {}", dfrom.is_some()), close, |ops, at| {
            ops.edge_gate_backward(
                samples,
                &gate,
                at(gates),
                at(gated),
                at(edges),
                at(dgates),
                dfrom.map(&at),
            )
        });
    }
    for (entry, weights) in [(None, None), (Some(entry), Some(weights))] {
        let mut losses = [0f64; 2];
        let [on_cpu, on_device] = &mut losses;
        let name = format!("squared_error, {}", entry.is_some());
        pair.compare(
            &name,
            close,
            |ops, at| {
                let (entry, weights) = (entry.map(at), weights.map(at));
                *on_cpu = ops.squared_error(samples, at(row), at(target), entry, weights, 0.3);
            },
            |ops| *on_device = ops.squared_error(samples, row, target, entry, weights, 0.3),
        )?;
        let error = (losses[1] / losses[0] - 1.0).abs();
        let name = format!("{name}: the loss, {}", math.name());
        // Weights of both signs: the sum is smaller than its terms.
        pair.checks.push(Check { name, error, tolerance: 1e-4 });
    }
    Ok(pair.checks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cuda::emulator::Emulator;

    #[test]
    fn operations_on_an_emulated_device_equal_the_cpu_engine() {
        for math in [Math::F32, Math::Bf16] {
            let Some(emulator) = Emulator::new() else { return };
            let checks = operations(emulator, math).unwrap();
            let wrong: Vec<_> = checks.iter().filter(|check| !check.passes()).collect();
            assert!(wrong.is_empty(), "{wrong:#?}");
            assert!(checks.len() > 35, "{}", checks.len());
        }
    }

    #[test]
    fn a_difference_shows() {
        assert_eq!(difference(&[1.0, 2.0], &[1.0, 2.0], &[0.0, 0.0]), 0.0);
        assert_eq!(difference(&[1.0, 2.5], &[1.0, 2.0], &[0.0, 0.0]), 0.25);
        assert_eq!(difference(&[1.0, 2.5], &[1.0, 2.0], &[1.0, 2.0]), f64::INFINITY);
        assert_eq!(difference(&[f32::NAN], &[1.0], &[0.0]), f64::INFINITY);
        let check = Check { name: String::new(), error: f64::NAN, tolerance: 1.0 };
        assert!(!check.passes());
    }
}
