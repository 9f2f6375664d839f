//! What was compared in one case, and what was not within its tolerance.

use std::fmt;

/// `Err` says why a case cannot be replayed.
pub type Outcome<T = ()> = Result<T, String>;

/// How far a result may be from the expected one.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// By this much.
    Absolute(f64),
    /// By this share of the largest expected value.
    Relative(f64),
    /// By this share of each expected value.
    Elementwise(f64),
}

/// Where a case states no tolerance: rounding of `f32` through a network.
pub const DEFAULT: Bound = Bound::Relative(2e-5);

/// The checks of one case.
#[derive(Debug, Default)]
pub struct Report {
    checks: usize,
    values: usize,
    /// Name, error and tolerance of the check with the largest share of it, and
    /// that share.
    worst: Option<(String, f64, f64, f64)>,
    failures: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    /// Compares values one by one.
    pub fn compare(&mut self, name: &str, found: &[f64], expected: &[f64], bound: Bound) {
        if found.len() != expected.len() {
            let (found, expected) = (found.len(), expected.len());
            self.failures.push(format!("{name}: {found} values, expected {expected}"));
            return;
        }
        let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let share = |error: f64, tolerance: f64| {
            // Not a number is as wrong as can be; two equal infinities are not.
            let share = if error == 0.0 { 0.0 } else { error / tolerance };
            if share.is_nan() {
                f64::INFINITY
            } else {
                share
            }
        };
        let mut worst = (0.0, 0.0, bound.tolerance(largest, largest));
        for (&found, &expected) in found.iter().zip(expected) {
            let error = if found == expected { 0.0 } else { (found - expected).abs() };
            let tolerance = bound.tolerance(expected, largest);
            let share = share(error, tolerance);
            if share > worst.0 {
                worst = (share, error, tolerance);
            }
        }
        self.record(name, found.len(), worst.1, worst.2, worst.0);
    }

    /// Compares one value.
    pub fn compare_one(&mut self, name: &str, found: f64, expected: f64, bound: Bound) {
        self.compare(name, &[found], &[expected], bound);
    }

    /// Checks that two things are the same.
    pub fn same<T: PartialEq + fmt::Debug>(&mut self, name: &str, found: &T, expected: &T) {
        if found == expected {
            self.record(name, 1, 0.0, 0.0, 0.0);
        } else {
            self.failures.push(format!("{name}: {found:?}, expected {expected:?}"));
        }
    }

    /// Checks a statement.
    pub fn holds(&mut self, name: &str, holds: bool) {
        self.same(name, &holds, &true);
    }

    /// Remarks on something that was not compared.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Remarks on tensors of the case that nothing looked at.
    pub fn unread(&mut self, names: Vec<String>) {
        if !names.is_empty() {
            self.note(format!("not compared: {}", names.join(", ")));
        }
    }

    fn record(&mut self, name: &str, values: usize, error: f64, tolerance: f64, share: f64) {
        self.checks += 1;
        self.values += values;
        if share > 1.0 {
            self.failures.push(format!("{name}: error {error:.2e}, tolerance {tolerance:.1e}"));
        }
        let nearer = self.worst.as_ref().is_none_or(|worst| share > worst.3);
        if nearer && (tolerance > 0.0 || share > 0.0) {
            self.worst = Some((name.to_owned(), error, tolerance, share));
        }
    }

    /// The failures, if any.
    pub fn finish(self) -> Outcome {
        match (self.failures.len(), self.checks) {
            (0, 0) => Err("the case holds nothing to compare".into()),
            (0, _) => Ok(()),
            _ => Err(self.failures.join("\n")),
        }
    }
}

impl Bound {
    fn tolerance(self, expected: f64, largest: f64) -> f64 {
        match self {
            Self::Absolute(tolerance) => tolerance,
            Self::Relative(share) => share * largest,
            Self::Elementwise(share) => share * expected.abs(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.worst {
            Some((name, error, tolerance, _)) => {
                write!(f, "error {error:.1e} of {tolerance:.1e} ({name})")?
            }
            None => write!(f, "exact")?,
        }
        write!(f, ", {} checks, {} values", self.checks, self.values)?;
        self.notes.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}
