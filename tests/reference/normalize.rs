//! Scaling of parameters.

use lopt::gpt::Normalizer;
use serde_json::Value;

use crate::case::{cast, number, numbers, widen, Case};
use crate::report::{Bound, Outcome, Report};

/// One multiplication or division in `f32`.
const ROUNDING: Bound = Bound::Elementwise(2.5e-7);

/// Every coefficient of a case, the identity, and how a coefficient is found.
pub fn normalizer(case: &Case, report: &mut Report) -> Outcome {
    let raw: Vec<f32> = case.cast("x")?;
    let mut prefixes = vec![("none".to_owned(), Normalizer::IDENTITY)];
    for json in case.field("cases")?.as_array().ok_or("`cases` is not a list")? {
        let normalizer = Normalizer { scale: number(json, "openai_coeff")? };
        let (low, high) = pair(&numbers(json, "get_range_in")?)?;
        let expected = numbers(json, "get_range_out")?;
        let (low, high) = normalizer.range(low, high);
        report.compare("range", &[low, high], &expected, Bound::Elementwise(1e-15));
        let scale = json.get("openai_coeff").map(Value::to_string).unwrap_or_default();
        prefixes.push((format!("openai_{scale}"), normalizer));
    }
    for (prefix, normalizer) in prefixes {
        type Change = fn(&Normalizer, &mut [f32]);
        let changes: [(&str, &[Change]); 3] = [
            ("normalized", &[Normalizer::normalize]),
            ("unnormalized", &[Normalizer::unnormalize]),
            ("roundtrip", &[Normalizer::normalize, Normalizer::unnormalize]),
        ];
        for (what, changes) in changes {
            let name = format!("{prefix}.{what}");
            if case.has(&name) {
                let mut flat = raw.clone();
                changes.iter().for_each(|change| change(&normalizer, &mut flat));
                report.compare(&name, &widen(&flat), case.values(&name)?, ROUNDING);
            }
        }
    }
    if let Ok(recipe) = case.field("openai_coeff_recipe") {
        let fitted = Normalizer::fit(cast::<f32>(case.values("x")?)).map_err(|e| e.to_string())?;
        // The reference's standard deviation is computed in f32.
        let bound = Bound::Elementwise(1e-6);
        report.compare_one("fitted", fitted.scale, number(recipe, "coeff_of_x")?, bound);
    }
    Ok(())
}

fn pair(values: &[f64]) -> Outcome<(f64, f64)> {
    match values {
        &[low, high] => Ok((low, high)),
        other => Err(format!("{} limits, expected 2", other.len())),
    }
}
