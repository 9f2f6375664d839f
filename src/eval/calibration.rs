//! Measures what comes of prompts, to undo the difference.

use serde::Serialize;

use super::prompting::prompted;
use super::updates::Subject;
use super::{EvalError, Monitor, Networks};
use crate::gpt::Calibration;
use crate::metric::Metric;
use crate::tasks::{Seeds, Task};

/// What prompts are tried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CalibrationConfig {
    /// Random initialisations. Default 256.
    pub networks: usize,
    /// Prompts for each, from a random initialisation's own value to the best. Default 20.
    pub prompts: usize,
}

impl Default for CalibrationConfig {
    fn default() -> Self {
        Self { networks: 256, prompts: 20 }
    }
}

/// What came of prompts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibrated {
    /// The metric.
    pub metric: Metric,
    /// Means of what was asked for, ascending.
    pub prompts: Vec<f64>,
    /// Means of what came of it.
    pub observed: Vec<f64>,
    /// What undoes the difference.
    pub calibration: Calibration,
    /// The settings.
    pub config: CalibrationConfig,
}

/// Prompts networks over the whole range of the metric, once each, and learns what to
/// ask for instead. The networks are neither those that evaluations draw nor those of
/// recordings (see [`Seeds::calibration`]).
///
/// # Errors
/// If a setting is unusable, the task or the optimizer fails, `monitor` ends it, or all
/// prompts lead to one value.
pub fn calibrate(
    task: &dyn Task,
    subject: &mut Subject,
    config: &CalibrationConfig,
    monitor: &dyn Monitor,
) -> Result<Calibrated, EvalError> {
    EvalError::check(config.prompts > 1, "prompts", config.prompts, "at least 2")?;
    monitor.stage("updates", 1);
    let metric = subject.metric;
    let networks = Networks::fresh(task, Seeds::calibration(), config.networks)?;
    let [asked, came] = prompted(task, subject, &networks, 1.0, config.prompts)?;
    monitor.advance();
    if monitor.cancelled() {
        return Err(EvalError::Cancelled);
    }
    let mut means: Vec<[f64; 2]> = (0..config.prompts)
        .map(|k| [&asked, &came].map(|values| mean(values, config.prompts, k)))
        .collect();
    means.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let [prompts, observed] = [0, 1].map(|i| means.iter().map(|pair| pair[i]).collect::<Vec<_>>());
    let calibration = Calibration::fit(&prompts, &observed)
        .ok_or(EvalError::Flat { metric, found: observed.first().copied().unwrap_or(f64::NAN) })?;
    Ok(Calibrated { metric, prompts, observed, calibration, config: *config })
}

/// Mean of a column.
fn mean(values: &[f64], columns: usize, column: usize) -> f64 {
    let rows = values.len() / columns;
    values.chunks(columns).map(|row| row[column]).sum::<f64>() / rows as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::alignment::Request;
    use crate::tasks::Digits;

    #[test]
    fn an_optimizer_that_overshoots_is_asked_for_less() {
        let digits = Digits::load().unwrap();
        let goal = digits.initial(3).unwrap();
        let value = digits.measure(&goal, crate::metric::Split::Validation).unwrap()[0];
        assert!(value > 1.0);
        // Goes to the same network whatever it is asked for.
        let mut sample = |request: Request<'_>| Ok(goal.repeat(request.target.len()));
        let mut subject = Subject {
            name: "stubborn",
            sample: &mut sample,
            metric: Metric::VALIDATION_LOSS,
            best_prompt: 0.1,
        };
        let config = CalibrationConfig { networks: 2, prompts: 3 };
        let error = calibrate(&digits, &mut subject, &config, &()).unwrap_err();
        assert!(error.to_string().contains("all prompts lead to"), "{error}");

        let mut gpt = crate::Gpt::new(
            crate::gpt::Pretrained::Digits.weights().unwrap(),
            crate::gpt::GptConfig::default(),
        )
        .unwrap();
        let mut sample = |request: Request<'_>| {
            let greedy: Vec<f64> = request.target.iter().map(|t| 0.7 * t).collect();
            Ok(gpt.sample(request.start, request.current, &greedy)?)
        };
        let mut subject = Subject { name: "greedy", sample: &mut sample, ..subject };
        let config = CalibrationConfig { networks: 4, prompts: 6 };
        let calibrated = calibrate(&digits, &mut subject, &config, &()).unwrap();
        let asked = calibrated.calibration.prompt(1.0);
        assert!((1.2..1.7).contains(&asked), "{calibrated:?}");
    }
}
