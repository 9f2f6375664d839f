//! Reordering of hidden units.

use lopt::layout::{Layout, LayoutBuilder, Role, UnitAxis, UnitGroup};
use lopt::symmetry::{gather, Symmetry};
use rand::SeedableRng;

use crate::case::{counts, named_shapes, Case};
use crate::network::{cross_entropy, error_percent, Network};
use crate::report::{Bound, Outcome, Report};

/// Sums of up to a thousand products in the reference's f32.
const OUTPUTS: Bound = Bound::Relative(2e-6);

/// The stored permutation, and that others leave the network's outputs alone.
pub fn permutation(case: &Case, report: &mut Report) -> Outcome {
    let tensors = named_shapes(case.field("layout")?)?;
    let layout = grouped(&tensors)?;
    let units: Vec<usize> = layout.groups().iter().map(|g| g.units).collect();
    report.same("unit groups", &units, &counts(case.json(), "permutation_calls")?);
    if tensors.iter().all(|(_, shape)| shape.len() <= 2) {
        let axes = |l: &Layout| l.groups().iter().map(|g| g.axes.clone()).collect::<Vec<_>>();
        report.same("groups that LayoutBuilder finds", &axes(&built(&tensors)?), &axes(&layout));
    }

    let symmetry = Symmetry::new(&layout);
    let names = (0..units.len()).map(|k| format!("perm{k}"));
    let permutations = names.map(|n| case.indices(&n)).collect::<Outcome<Vec<_>>>()?;
    let index = symmetry.index(&permutations);
    let as_usize: Vec<usize> = index.iter().map(|&i| i as usize).collect();
    report.same("index", &as_usize, &case.indices("index")?);

    let architecture = case.text("architecture").unwrap_or_default();
    let network = Network::new(&tensors, architecture)?;
    let (inputs, shape) = (case.values("inputs")?, case.shape("inputs")?[1..].to_vec());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    for k in 0.. {
        let name = format!("flat_{k}");
        if !case.has(&name) {
            break;
        }
        let flat = case.values(&name)?;
        let mut moved = vec![0.0; flat.len()];
        gather(&index, flat, &mut moved);
        let name = format!("permuted_{k}");
        report.compare(&name, &moved, case.values(&name)?, Bound::Absolute(0.0));

        let name = format!("outputs_{k}");
        let outputs = network.forward(flat, inputs, &shape);
        report.compare(&name, &outputs, case.values(&name)?, OUTPUTS);
        let permuted = format!("outputs_permuted_{k}");
        if case.has(&permuted) {
            let found = network.forward(&moved, inputs, &shape);
            report.compare(&permuted, &found, case.values(&permuted)?, OUTPUTS);
        }
        for _ in 0..3 {
            symmetry.sample(&mut rng).apply(flat, &mut moved);
            let found = network.forward(&moved, inputs, &shape);
            report.compare("outputs after our own permutation", &found, &outputs, OUTPUTS);
        }
        if k == 0 && case.has("labels") {
            let labels = case.indices("labels")?;
            let losses = cross_entropy(&outputs, &labels);
            report.compare("inst_loss_0", &losses, case.values("inst_loss_0")?, OUTPUTS);
            if let Ok(Some(expected)) = case.field("test_loss").map(|v| v.as_f64()) {
                let mean = losses.iter().sum::<f64>() / losses.len() as f64;
                report.compare_one("test_loss", mean, expected, OUTPUTS);
            }
            if let Ok(Some(expected)) = case.field("test_err_percent").map(|v| v.as_f64()) {
                let found = error_percent(&outputs, &labels);
                report.compare_one("test_err_percent", found, expected, Bound::Absolute(1e-9));
            }
        }
    }
    Ok(())
}

/// The layout with the groups that the cases describe: the rows of a weight and
/// its bias, and the columns of the next weight.
fn grouped(tensors: &[(String, Vec<usize>)]) -> Outcome<Layout> {
    let weights: Vec<usize> = (0..tensors.len()).filter(|&t| tensors[t].1.len() > 1).collect();
    let mut groups = Vec::new();
    for pair in weights.windows(2) {
        let (name, shape) = &tensors[pair[0]];
        let (units, prefix) = (shape[0], name.trim_end_matches("weight"));
        let axis = |tensor, axis, block, produces| UnitAxis { tensor, axis, block, produces };
        let mut axes = vec![axis(pair[0], 0, 1, true)];
        let bias = tensors.iter().position(|(name, _)| *name == format!("{prefix}bias"));
        axes.extend(bias.map(|bias| axis(bias, 0, 1, true)));
        axes.push(axis(pair[1], 1, tensors[pair[1]].1[1] / units, false));
        groups.push(UnitGroup {
            name: prefix.trim_end_matches('.').to_owned(),
            units,
            axes,
            odd: false,
        });
    }
    let entry = |(name, shape): &(String, Vec<usize>)| {
        let role = if shape.len() > 1 { Role::Weight } else { Role::Bias };
        serde_json::json!({ "name": name, "shape": shape, "role": role })
    };
    let tensors: Vec<_> = tensors.iter().map(entry).collect();
    let json = serde_json::json!({ "tensors": tensors, "groups": groups, "layers": [] });
    serde_json::from_value(json).map_err(|e| e.to_string())
}

/// The layout of linear layers as the crate itself describes them.
fn built(tensors: &[(String, Vec<usize>)]) -> Outcome<Layout> {
    let mut builder = LayoutBuilder::new();
    for (i, (name, shape)) in tensors.iter().enumerate() {
        let prefix = name.trim_end_matches(".weight");
        let biased = |b: &str| tensors.get(i + 1).is_some_and(|(next, _)| next == b);
        match shape[..] {
            [outputs, inputs] => {
                let bias = biased(&format!("{prefix}.bias"));
                builder.scope(prefix, |b| b.linear(inputs, outputs, bias));
            }
            _ if i > 0 && *name == tensors[i - 1].0.replace("weight", "bias") => {}
            _ => {
                builder.tensor(name, shape, Role::Bias);
            }
        }
    }
    builder.finish().map_err(|e| e.to_string())
}
