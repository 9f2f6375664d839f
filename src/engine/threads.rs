//! Threads that share the work of a pass.

use super::EngineError;

/// A fixed number of threads, with no others created during a step.
#[derive(Debug)]
pub struct Threads {
    /// None where one thread does everything: the caller's.
    pool: Option<rayon::ThreadPool>,
    count: usize,
}

impl Threads {
    /// Starts `count` threads; 0 means as many as the machine has cores.
    ///
    /// # Errors
    /// If the system refuses to start them.
    pub fn new(count: usize) -> Result<Self, EngineError> {
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let pool = match count {
            1 => None,
            _ => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(count)
                    .thread_name(|i| format!("lopt-{i}"))
                    .build()
                    .map_err(|e| EngineError::Threads { threads: count, problem: e.to_string() })?,
            ),
        };
        Ok(Self { pool, count })
    }

    /// How many threads there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Runs `work` where calls of rayon go to these threads. With one thread
    /// that is the caller's: `work` must then make no such calls.
    pub(crate) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}
