//! Records many runs in parallel, and goes on where an earlier recording ended.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Outcome, Run, RunInfo, Store, StoreError};

/// How runs are recorded.
#[derive(Clone, Default)]
pub struct RecordOptions<'a> {
    /// Runs that are made at a time, each on one thread. Default: 0, as many
    /// as there are cores.
    pub threads: usize,
    /// Set it, from a Ctrl-C handler say, to end the recording: runs that are
    /// not finished are given up, all others are in the store. Default: none.
    pub cancel: Option<Arc<AtomicBool>>,
    /// Called when it starts and after every run, by one thread at a time.
    /// Default: none.
    pub progress: Option<&'a (dyn Fn(&Progress) + Sync)>,
}

impl fmt::Debug for RecordOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordOptions")
            .field("threads", &self.threads)
            .field("cancel", &self.cancel)
            .finish_non_exhaustive()
    }
}

/// How far a recording is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Runs asked for.
    pub total: usize,
    /// Runs that were in the store before, kept or dropped.
    pub skipped: usize,
    /// Runs recorded and kept.
    pub kept: usize,
    /// Runs recorded and dropped.
    pub dropped: usize,
    /// Runs that ended in an error.
    pub failed: usize,
}

impl Progress {
    /// Runs that nothing more happens to.
    pub fn done(&self) -> usize {
        self.skipped + self.kept + self.dropped + self.failed
    }
}

/// A run that ended in an error.
#[derive(Debug)]
pub struct FailedRun<E> {
    /// Number of the run.
    pub id: u64,
    /// The error.
    pub error: E,
}

/// What a recording came to.
#[derive(Debug)]
pub struct RecordReport<E> {
    /// Numbers of runs.
    pub progress: Progress,
    /// Runs that ended in an error, ordered by number. They are not in the
    /// store, so that the next recording tries them again.
    pub failures: Vec<FailedRun<E>>,
    /// Whether the recording was cancelled.
    pub cancelled: bool,
}

/// Records runs in parallel, and skips those that the store has already.
///
/// `record` makes one run: it trains a network and calls [`Run::record`].
/// The run is finished for it. Since a run is known by its number, a recording
/// that was stopped or killed goes on where it was when it is called again, and
/// what is recorded does not depend on the number of threads.
///
/// # Errors
/// If the store was opened for reading, or cannot be written to: a full disk
/// ends the recording. Errors of `record` do not, they are in the report.
///
/// # Panics
/// If `record` panics; the other threads first end the runs that they are at.
///
/// # Examples
/// ```
/// use lopt::checkpoints::{record_runs, Metadata, RecordOptions, RunInfo, Store, StoreError};
/// # use lopt::layout::{LayoutBuilder, Role};
/// # use lopt::metric::Metric;
/// # let folder = tempfile::tempdir()?;
/// # let mut layout = LayoutBuilder::new();
/// # layout.tensor("weight", &[1], Role::Weight);
/// # let metadata = Metadata::new("slope", layout.finish()?, vec![Metric::VALIDATION_LOSS]);
/// # let store = Store::create(folder.path(), metadata)?;
/// let runs = (0..8).map(|id| RunInfo::new(id, 100 + id));
/// let report = record_runs(&store, runs, &RecordOptions::default(), |run| {
///     let mut x = run.info().seed as f32;
///     for _ in 0..5 {
///         run.record_flat(&[x], &[f64::from(x * x)])?;
///         x *= 0.5;
///     }
///     Ok::<(), StoreError>(())
/// })?;
/// assert_eq!(report.progress.kept, 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn record_runs<E: Send>(
    store: &Store,
    runs: impl IntoIterator<Item = RunInfo>,
    options: &RecordOptions,
    record: impl Fn(&mut Run) -> Result<(), E> + Sync,
) -> Result<RecordReport<E>, StoreError> {
    store.check_writer()?;
    let there: HashSet<u64> = store.runs()?.iter().map(|entry| entry.info.id).collect();
    let mut queue: Vec<RunInfo> = runs.into_iter().collect();
    let total = queue.len();
    queue.retain(|info| !there.contains(&info.id));
    let skipped = total - queue.len();
    let cancel = options.cancel.clone().unwrap_or_default();
    let stop = AtomicBool::new(false);
    let state = Mutex::new(State {
        progress: Progress { total, skipped, ..Progress::default() },
        failures: Vec::new(),
        fatal: None,
    });
    let report = |change: &mut dyn FnMut(&mut State<E>)| {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        if let Some(progress) = options.progress {
            progress(&state.progress);
        }
    };
    report(&mut |_| {});

    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let threads = threads.min(queue.len());
    let queue = Mutex::new(queue.into_iter());
    let work = || {
        let _guard = StopOnPanic(&stop);
        while !stop.load(Ordering::Relaxed) && !cancel.load(Ordering::Relaxed) {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(info) = next else { break };
            let id = info.id;
            let mut run = match store.begin_run(info) {
                Ok(run) => run.cancelled_by(Some(cancel.clone())),
                Err(e) => {
                    stop.store(true, Ordering::Relaxed);
                    let mut e = Some(e);
                    return report(&mut |state| state.fatal = e.take());
                }
            };
            if let Err(error) = record(&mut run) {
                // A run that was given up has not failed.
                if !cancel.load(Ordering::Relaxed) {
                    let mut failed = Some(FailedRun { id, error });
                    report(&mut |state| {
                        state.progress.failed += 1;
                        state.failures.extend(failed.take());
                    });
                }
                continue;
            }
            let mut outcome = Some(run.finish());
            report(&mut |state| match outcome.take() {
                Some(Ok(Outcome::Kept { .. })) => state.progress.kept += 1,
                Some(Ok(Outcome::Dropped(_))) => state.progress.dropped += 1,
                Some(Err(e)) => {
                    stop.store(true, Ordering::Relaxed);
                    state.fatal = Some(e);
                }
                None => {}
            });
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            // What dfdx and `nn` would split over all cores stays on one: there is a run
            // for each. Without a pool it is right all the same, if slower.
            scope.spawn(|| match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
                Ok(pool) => pool.install(work),
                Err(_) => work(),
            });
        }
    });

    let State { progress, mut failures, fatal } =
        state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = fatal {
        return Err(error);
    }
    failures.sort_by_key(|failed| failed.id);
    let cancelled = cancel.load(Ordering::Relaxed) && progress.done() < total;
    Ok(RecordReport { progress, failures, cancelled })
}

struct State<E> {
    progress: Progress,
    failures: Vec<FailedRun<E>>,
    fatal: Option<StoreError>,
}

/// Ends the other threads when the thread that holds it panics.
struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
