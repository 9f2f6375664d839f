//! Which pairs of checkpoints are drawn, how often, and from which runs.

use lopt::checkpoints::{Dataset, DatasetConfig, Metadata, PairConfig, RunInfo, RunSpan, Store};
use lopt::layout::{LayoutBuilder, Role};
use lopt::metric::Metric;
use rand::SeedableRng;
use serde_json::Value;

use crate::case::{count, list, Case};
use crate::report::{Bound, Outcome, Report};

/// Draws of our own sampler.
const DRAWS: usize = 100_000;

/// The law of the pairs, by enumeration; that our draws follow it, and that the
/// reference's did; and which runs are held out.
pub fn pairs(case: &Case, report: &mut Report) -> Outcome {
    let json = case.json();
    let n = count(json, "num_checkpoints")?;
    let metrics: Vec<f64> = (0..n).map(|i| 1.0 / (1.0 + i as f64)).collect();
    let config = PairConfig::default();
    let law = config.probabilities(&metrics);
    let key = |start: usize, end: usize| format!("{start}->{end}");

    let expected = case.field("exact_pair_probability")?;
    let stated = expected.as_object().map_or(0, |o| o.len());
    report.same("number of pairs", &law.len(), &stated);
    for &(pair, probability) in &law {
        let name = key(pair.start, pair.end);
        let stated = expected.get(&name).and_then(Value::as_f64).unwrap_or(0.0);
        report.compare_one(&name, probability, stated, Bound::Absolute(1e-15));
    }

    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let mut counts = vec![0usize; law.len()];
    for _ in 0..DRAWS {
        let drawn = config.draw(&metrics, &mut rng);
        match law.iter().position(|&(pair, _)| pair == drawn) {
            Some(at) => counts[at] += 1,
            None => return Err(format!("{drawn:?} is drawn, which the law does not hold")),
        }
    }
    let chi2 = |counts: &[usize], draws: usize| {
        let term = |(&count, &(_, p)): (&usize, &(_, f64))| {
            let expected = p * draws as f64;
            (count as f64 - expected).powi(2) / expected
        };
        counts.iter().zip(&law).map(term).sum::<f64>()
    };
    // Five deviations of χ² above its mean.
    let freedom = law.len() as f64 - 1.0;
    let limit = freedom + 5.0 * (2.0 * freedom).sqrt();
    report.compare_one("χ² of our draws", chi2(&counts, DRAWS), 0.0, Bound::Absolute(limit));
    if let (Ok(counts), Ok(draws)) =
        (case.field("empirical_counts"), count(json, "empirical_draws"))
    {
        let of = |pair: lopt::checkpoints::Pair| {
            counts.get(key(pair.start, pair.end)).and_then(Value::as_u64).unwrap_or(0) as usize
        };
        let counts: Vec<usize> = law.iter().map(|&(pair, _)| of(pair)).collect();
        let stated = case.field("chi2")?.as_f64().unwrap_or(f64::NAN);
        let found = chi2(&counts, draws);
        report.compare_one("χ² of the reference's draws", found, stated, Bound::Elementwise(1e-9));
    }
    split(case, report, n)
}

/// Records as many runs as the case has, and looks at which are held out.
fn split(case: &Case, report: &mut Report, checkpoints: usize) -> Outcome {
    let json = case.json();
    let error = |e: &dyn std::fmt::Display| e.to_string();
    let folder = tempfile::tempdir().map_err(|e| error(&e))?;
    let mut layout = LayoutBuilder::new();
    layout.tensor("weight", &[1], Role::Weight);
    let layout = layout.finish().map_err(|e| error(&e))?;
    let metadata = Metadata::new("pairs", layout, vec![Metric::TEST_LOSS]);
    let store = Store::create(folder.path().join("store"), metadata).map_err(|e| error(&e))?;
    // Last first: runs are ordered by number, not by when they were recorded.
    for id in (0..count(json, "num_runs_total")? as u64).rev() {
        let mut run = store.begin_run(RunInfo::new(id, id)).map_err(|e| error(&e))?;
        for k in 0..checkpoints {
            run.record_flat(&[k as f32], &[1.0 / (1.0 + k as f64)]).map_err(|e| error(&e))?;
        }
        run.finish().map_err(|e| error(&e))?;
    }
    let held_out = count(json, "num_test_runs")?;
    let config = DatasetConfig { held_out, metric: Metric::TEST_LOSS, ..Default::default() };
    let dataset = Dataset::load(&store, &config).map_err(|e| error(&e))?;
    // Names of runs, in the order of their numbers.
    let names = |field: &str| -> Outcome<Vec<String>> {
        let names = list(json, field)?.iter().filter_map(Value::as_str);
        Ok(names.map(str::to_owned).collect())
    };
    let mut all = [names("train_runs")?, names("test_runs")?].concat();
    all.sort();
    for (field, runs) in [("train_runs", dataset.train()), ("test_runs", dataset.held_out())] {
        let name = |run: &RunSpan| all.get(run.id as usize).cloned().unwrap_or_default();
        report.same(field, &runs.iter().map(name).collect::<Vec<_>>(), &names(field)?);
    }
    Ok(())
}
