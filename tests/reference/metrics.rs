//! Metrics of prompting, and which pairs of checkpoints are drawn.

use lopt::eval::alignment::{linspace, prompt_alignment, r_squared, spread_losses};
use lopt::metric::Direction;

use crate::case::{number, Case};
use crate::report::{Bound, Outcome, Report};

/// The reference computes these in f32 from sums of a few dozen terms.
const F32_SUMS: Bound = Bound::Relative(2e-6);

/// R², prompt alignment, spread losses and rows of prompts.
pub fn metrics(case: &Case, report: &mut Report) -> Outcome {
    let results = case.field("results")?;
    if case.has("r2.targets") {
        let (targets, predictions) = (case.values("r2.targets")?, case.values("r2.preds")?);
        let columns = columns(case, "r2.targets")?;
        let expected = number(results, "r2")?;
        report.compare_one("r2", r_squared(targets, predictions, columns), expected, F32_SUMS);
        if let Ok(expected) = number(results, "r2_swapped_arguments") {
            let found = r_squared(predictions, targets, columns);
            report.compare_one("r2 swapped", found, expected, F32_SUMS);
        }
        if let Ok(expected) = number(results, "r2_perfect") {
            let found = r_squared(targets, targets, columns);
            report.compare_one("r2 perfect", found, expected, F32_SUMS);
        }
        if let Ok(expected) = number(results, "r2_constant_preds") {
            let found = r_squared(targets, &vec![1.0; targets.len()], columns);
            // Two numbers near 1 are subtracted.
            report.compare_one("r2 of predicting 1", found, expected, Bound::Absolute(2e-6));
        }
        if let Ok(expected) = number(results, "r2_constant_targets_pred_plus_0.1") {
            // 1 - K 0.1² / 1e-8; the case does not say K, a whole number.
            let k = ((1.0 - expected) * 1e-6).round();
            let found = r_squared(&[0.0, 0.0], &[0.1, 0.1], 2);
            let found = 1.0 - (1.0 - found) * k / 2.0;
            report.compare_one("r2 of equal targets", found, expected, F32_SUMS);
        }
    }
    if case.has("align.observed") {
        let (desired, observed) = (case.values("align.desired")?, case.values("align.observed")?);
        let k = columns(case, "align.desired")?;
        let found = prompt_alignment(desired, &drop_first_column(observed, k + 1), k);
        let expected = number(results, "prompt_alignment")?;
        report.compare_one("prompt_alignment", found, expected, F32_SUMS);
    }
    let names: Vec<String> = case.names().map(str::to_owned).collect();
    for name in &names {
        // Names say how many steps, and which way: `spread.steps6_min`, `linspace.steps7`.
        let Some((group, rest)) = name.split_once(".steps") else { continue };
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let steps: usize = rest[..digits].parse().map_err(|_| format!("steps of `{name}`"))?;
        let found: Vec<f64> = match group {
            "spread" => {
                let direction =
                    if rest.ends_with("max") { Direction::Maximize } else { Direction::Minimize };
                let losses = case.values("spread.losses")?;
                let rows = losses.chunks(columns(case, "spread.losses")?);
                rows.flat_map(|row| spread_losses(row, steps, direction)).collect()
            }
            "linspace" => {
                let (start, end) = (case.values("linspace.start")?, case.values("linspace.end")?);
                start.iter().zip(end).flat_map(|(&a, &b)| linspace(a, b, steps)).collect()
            }
            other => return Err(format!("no metric `{other}`")),
        };
        // Losses are picked, not computed; rows of prompts are formed in f32.
        let bound = if group == "spread" { Bound::Absolute(0.0) } else { F32_SUMS };
        report.compare(name, &found, case.values(name)?, bound);
    }
    let known = [
        "r2",
        "r2_swapped_arguments",
        "r2_perfect",
        "r2_constant_preds",
        "r2_constant_targets_pred_plus_0.1",
        "prompt_alignment",
    ];
    for name in results.as_object().into_iter().flat_map(|o| o.keys()) {
        // The reference's scalar meter is its logging, which lopt has no counterpart of.
        if !known.contains(&&name[..]) {
            report.note(format!("not compared: result {name}"));
        }
    }
    Ok(())
}

/// Length of the last axis.
pub fn columns(case: &Case, name: &str) -> Outcome<usize> {
    case.shape(name)?.last().copied().ok_or_else(|| format!("`{name}` is a scalar"))
}

/// Rows without their first value.
pub fn drop_first_column(values: &[f64], columns: usize) -> Vec<f64> {
    values.chunks(columns).flat_map(|row| row[1..].to_vec()).collect()
}
