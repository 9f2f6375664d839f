//! CPU time, wall-clock time and peak memory of repeated work.

use std::time::Instant;

use anyhow::Context;
use rustix::time::{clock_gettime, ClockId};

/// Shortest stretch that is timed at once, in seconds: short work is repeated.
const STRETCH: f64 = 1e-3;
/// Fewest stretches in a median.
const FEWEST: usize = 3;

/// Medians over stretches of repeated work.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// CPU time of all threads of the process, in milliseconds.
    pub cpu_ms: f64,
    /// Wall-clock time, in milliseconds.
    pub wall_ms: f64,
    /// Shortest CPU time, in milliseconds.
    pub best_cpu_ms: f64,
    /// Most memory that the process had since the work was prepared, in bytes.
    pub peak_bytes: u64,
}

impl Timing {
    /// The line that `run.sh` reads.
    pub fn json(&self, what: &str) -> serde_json::Value {
        serde_json::json!({
            "what": what, "cpu_ms": self.cpu_ms, "wall_ms": self.wall_ms,
            "best_cpu_ms": self.best_cpu_ms, "peak_bytes": self.peak_bytes,
        })
    }
}

/// Repeats `work` for about `seconds`, after a quarter of that to warm up.
///
/// # Errors
/// The first of `work`, or that the system does not tell about memory.
pub fn measure(
    seconds: f64,
    mut work: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Timing> {
    forget_peak();
    let start = Instant::now();
    let mut first = f64::INFINITY;
    while first.is_infinite() || start.elapsed().as_secs_f64() < seconds / 4.0 {
        let start = Instant::now();
        work()?;
        first = start.elapsed().as_secs_f64();
    }
    let repeats = (STRETCH / first).ceil().max(1.0);
    let (mut cpu, mut wall) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while cpu.len() < FEWEST || start.elapsed().as_secs_f64() < seconds {
        let (stretch, before) = (Instant::now(), process_cpu_seconds());
        for _ in 0..repeats as usize {
            work()?;
        }
        cpu.push((process_cpu_seconds() - before) / repeats * 1e3);
        wall.push(stretch.elapsed().as_secs_f64() / repeats * 1e3);
    }
    let best_cpu_ms = cpu.iter().copied().fold(f64::INFINITY, f64::min);
    Ok(Timing {
        cpu_ms: median(cpu),
        wall_ms: median(wall),
        best_cpu_ms,
        peak_bytes: peak_bytes()?,
    })
}

/// CPU time of all threads of the process so far.
pub fn process_cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Makes the peak of the memory that of now, where the system allows it.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn peak_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmHWM in /proc/self/status")?
        .parse()?;
    Ok(kib * 1024)
}
