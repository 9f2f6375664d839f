//! Parity with the G.pt reference: replays every golden case.
//!
//! A case is a JSON file that says what was computed and how exactly it must be
//! met, and in most cases a safetensors file of the same name. Cases are found
//! by what their JSON says, never by file name, in `tests/golden` and, where it
//! is set, in the folder that `LOPT_FIXTURES` names.
//!
//! With the feature `cuda`, `LOPT_DEVICE=cuda` runs the passes of `f32` on a GPU: outputs, losses
//! and gradients. The rest stays on the CPU.
//!
//! Each line shows the check that came nearest to its tolerance.

mod augment;
mod case;
#[cfg(feature = "cuda")]
mod device;
mod diffusion;
mod metrics;
mod model;
mod network;
mod normalize;
mod pairs;
mod prompting;
mod report;
mod schedules;
mod train;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::case::Case;
use crate::report::{Outcome, Report};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // In turn, so that each line is printed whole.
    arguments.test_threads = Some(1);
    // A test program that was copied to another machine is told where they lie.
    let golden = std::env::var_os("LOPT_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from);
    let mut trials = Vec::new();
    collect("golden", &golden, &mut trials);
    if let Some(folder) = std::env::var_os("LOPT_FIXTURES") {
        collect("fixtures", Path::new(&folder), &mut trials);
    }
    trials.push(Trial::test("hostile/truncated", move || Ok(truncated(&golden)?)));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Every golden file of tensors, cut short anywhere, is refused.
fn truncated(root: &Path) -> Outcome {
    let mut files = Vec::new();
    find(root, &mut files);
    files.retain(|file| file.extension().is_some_and(|e| e == "safetensors"));
    for file in files {
        let bytes = std::fs::read(&file).map_err(|e| e.to_string())?;
        for cut in (0..64).map(|k| k * bytes.len() / 64).chain([4, 8, 9, bytes.len() - 1]) {
            if case::read_tensors(&bytes[..cut]).is_ok() {
                return Err(format!("{} cut to {cut} bytes is read", file.display()));
            }
        }
        let mut endless = bytes;
        endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        if case::read_tensors(&endless).is_ok() {
            return Err(format!("{} with an endless header is read", file.display()));
        }
    }
    Ok(())
}

/// One trial for each JSON file below `root`, and one more that fails if there is none.
fn collect(label: &str, root: &Path, trials: &mut Vec<Trial>) {
    let mut files = Vec::new();
    find(root, &mut files);
    // Those of the layers for images are read by tests/nn.rs.
    files.retain(|file| !file.starts_with(root.join("nn")));
    files.sort();
    let (root, label) = (root.to_owned(), label.to_owned());
    if !files.iter().any(|file| file.extension().is_some_and(|e| e == "json")) {
        let message = format!("no cases in {}", root.display());
        trials.push(Trial::test(label, move || Err(Failed::from(message))));
        return;
    }
    for file in files {
        let name = file.strip_prefix(&root).unwrap_or(&file).with_extension("");
        let name = format!("{label}/{}", name.display());
        if file.extension().is_some_and(|e| e == "json") {
            trials.push(Trial::test(name, move || run(&file)));
        } else if file.extension().is_some_and(|e| e == "safetensors")
            && !file.with_extension("json").exists()
        {
            let failed = || Err(Failed::from("a safetensors file with no JSON beside it"));
            trials.push(Trial::test(name, failed));
        }
    }
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            find(&path, files);
        } else {
            files.push(path);
        }
    }
}

fn run(file: &Path) -> Result<(), Failed> {
    let case = Case::load(file)?;
    let mut report = Report::default();
    let outcome = replay(&case, &mut report);
    if outcome.is_ok() {
        report.unread(case.unread());
    }
    print!("{report} ");
    std::io::stdout().flush().ok();
    outcome?;
    Ok(report.finish()?)
}

/// Runs a case by its kind, and by the fields that tell cases of a kind apart.
fn replay(case: &Case, report: &mut Report) -> Outcome {
    let kind = case.text("kind")?;
    match kind {
        "augment" => augment::permutation(case, report),
        "model" if case.has("x_noised") => model::forward(case, report),
        "model" if case.field("parameters").is_ok() => model::initial_values(case, report),
        "embedding" => model::embedding(case, report),
        "splits" => model::splits(case, report),
        "diffusion" if case.field("sampler").is_ok() => diffusion::sampler(case, report),
        "diffusion" if case.has("q_sample") => diffusion::single_step(case, report),
        "diffusion" if case.field("space_timesteps").is_ok() => schedules::tables(case, report),
        "normalize" => normalize::normalizer(case, report),
        "metrics" if case.field("exact_pair_probability").is_ok() => pairs::pairs(case, report),
        "metrics" if case.field("results").is_ok() => metrics::metrics(case, report),
        "metrics" if case.field("stand_ins").is_ok() => prompting::stand_ins(case, report),
        "metrics" if case.has("noise_one_step") => prompting::end_to_end(case, report),
        "train" if case.field("hyper").is_ok() => train::steps(case, report),
        "train" if case.has("ema_before") => train::moving_average(case, report),
        "train" if case.field("schedules").is_ok() => schedules::learning_rate(case, report),
        other => {
            let fields: Vec<&String> =
                case.json().as_object().into_iter().flat_map(|o| o.keys()).collect();
            Err(format!("unknown case: kind `{other}` with fields {fields:?}"))
        }
    }
}
