//! Numbers for people.

use crate::eval::{Comparison, Estimate, Scores};
use crate::metric::{Metric, MetricKind};

/// A value with as many digits as its metric is worth.
pub(super) fn value(kind: MetricKind, value: f64) -> String {
    match kind {
        _ if !value.is_finite() => "diverged".to_owned(),
        MetricKind::Loss | MetricKind::Score => format!("{value:.3}"),
        MetricKind::Error => format!("{value:.1} %"),
        MetricKind::Return => format!("{value:.1}"),
    }
}

/// A mean and its standard error.
pub(super) fn estimate(kind: MetricKind, estimate: Estimate) -> String {
    let Estimate { mean, standard_error: error } = estimate;
    match kind {
        _ if !mean.is_finite() || !error.is_finite() => value(kind, mean),
        MetricKind::Loss | MetricKind::Score => format!("{mean:.3} ± {error:.3}"),
        MetricKind::Error => format!("{mean:.1} ± {error:.1} %"),
        MetricKind::Return => format!("{mean:.1} ± {error:.1}"),
    }
}

/// The estimate of one metric of some scores.
pub(super) fn score(scores: &Scores, metric: Metric) -> String {
    estimate(metric.kind, scores.get(metric))
}

/// A duration in the unit that suits it.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "-".to_owned(),
        s if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.1} s"),
    }
}

/// Steps of a baseline in the unit of a comparison, or that there were not enough.
pub(super) fn unit_steps(comparison: &Comparison, count: Option<usize>, run: usize) -> String {
    let factor = comparison.unit.per_step;
    steps(count.map(|count| count * factor), run * factor)
}

/// A number of steps, or that there were not enough.
pub(super) fn steps(steps: Option<usize>, run: usize) -> String {
    steps.map_or_else(|| format!("more than {run}"), |steps| steps.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_carry_their_unit() {
        let estimate_of = |mean, standard_error| Estimate { mean, standard_error };
        assert_eq!(estimate(MetricKind::Error, estimate_of(5.54, 0.12)), "5.5 ± 0.1 %");
        assert_eq!(estimate(MetricKind::Loss, estimate_of(0.25, f64::NAN)), "0.250");
        assert_eq!(value(MetricKind::Loss, f64::NAN), "diverged");
        assert_eq!(seconds(0.00042), "420 µs");
        assert_eq!(seconds(0.0042), "4.2 ms");
        assert_eq!(steps(None, 1500), "more than 1500");
    }
}
