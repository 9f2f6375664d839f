//! Progress on standard error, threads and Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use lopt::engine::Device;
use lopt::eval::Monitor;

use super::output::Failure;
use super::Shared;

/// How a command talks to the person who started it.
pub struct Terminal {
    /// Whether results are one JSON object.
    pub json: bool,
    /// Threads to use.
    pub threads: usize,
    /// What G.pt runs on.
    pub device: Device,
    silent: bool,
    stop: Arc<AtomicBool>,
    bar: Mutex<ProgressBar>,
}

impl Terminal {
    /// Sets up threads and Ctrl-C. The first Ctrl-C asks the command to stop, the
    /// second ends it at once.
    pub fn new(shared: &Shared) -> Result<Self, Failure> {
        let available = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = shared.threads.map_or(available, usize::from);
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        })?;
        let silent = shared.quiet || shared.json;
        let bar = Mutex::new(ProgressBar::hidden());
        Ok(Self { json: shared.json, threads, device: shared.device, silent, stop, bar })
    }

    /// Set when Ctrl-C was pressed.
    pub fn stop(&self) -> &Arc<AtomicBool> {
        &self.stop
    }

    /// Whether Ctrl-C was pressed.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// A progress bar with the time left; hidden when standard error is no terminal.
    pub fn bar(&self, what: &str, total: u64) -> ProgressBar {
        if self.silent {
            return ProgressBar::hidden();
        }
        let template =
            "{msg}  {bar:32.cyan/dim} {human_pos}/{human_len}  {elapsed} gone, {eta} left";
        let style = ProgressStyle::with_template(template);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━━─");
        let bar = ProgressBar::new(total).with_style(style).with_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        bar
    }

    /// A line for the person at the terminal.
    pub fn say(&self, text: &str) {
        if !self.silent {
            eprintln!("{text}");
        }
    }

    /// A line that matters to scripts as well: on standard error even with `--json`.
    pub fn warn(&self, text: &str) {
        eprintln!("warning: {text}");
    }

    fn with_bar<T>(&self, f: impl FnOnce(&mut ProgressBar) -> T) -> T {
        f(&mut self.bar.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Removes the progress bar of an evaluation.
    pub fn clear(&self) {
        self.with_bar(|bar| bar.finish_and_clear());
    }
}

impl Monitor for Terminal {
    fn stage(&self, name: &str, total: usize) {
        let next = self.bar(name, total as u64);
        self.with_bar(|bar| {
            bar.finish_and_clear();
            *bar = next;
        });
    }

    fn advance(&self) {
        self.with_bar(|bar| bar.inc(1));
    }

    fn cancelled(&self) -> bool {
        self.stopped()
    }
}
