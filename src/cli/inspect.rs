//! `lopt inspect`.

use std::path::{Path, PathBuf};

use clap::Args;
use lopt::checkpoints::Store;
use lopt::gpt::Weights;
use serde_json::json;

use super::optimizer::Named;
use super::output::{print, print_json, Failure};
use super::terminal::Terminal;

/// Show what a folder of recorded runs or a weights file holds
///
/// Of a folder: the network, the runs that were kept and dropped, the range of
/// each metric, the size. Of weights: the model, the network it updates, the
/// metric and its range, how it was made.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lopt inspect runs/digits
  lopt inspect digits.safetensors --json")]
pub struct Arguments {
    /// Folder made by `lopt record` or file made by `lopt train`
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

pub fn run(arguments: &Arguments, terminal: &Terminal) -> Result<(), Failure> {
    let path = &arguments.path;
    if !path.exists() {
        return Err(format!(
            "there is nothing at {}, expected a folder made by `lopt record` or a file made by \
             `lopt train`",
            path.display()
        )
        .into());
    }
    if path.is_file() {
        return weights(path, terminal);
    }
    let summary = Store::open(path)?.summary()?;
    if terminal.json {
        print_json(&summary)
    } else {
        print(&summary.to_string())
    }
}

fn weights(path: &Path, terminal: &Terminal) -> Result<(), Failure> {
    let name = || format!("cannot show {}", path.display());
    let weights = Weights::load(path).map_err(|e| Named(name(), e))?;
    let header = &weights.header;
    let bytes = std::fs::metadata(path)?.len();
    if terminal.json {
        return print_json(&json!({
            "path": path,
            "parameters": weights.parameters.len(),
            "bytes": bytes,
            "header": header,
        }));
    }
    let (config, range) = (&header.config, header.prompt_range);
    let tensors: String = header
        .layout
        .tensors()
        .iter()
        .map(|tensor| format!("  {} {:?}\n", tensor.name, tensor.shape))
        .collect();
    print(&format!(
        "weights      {}\ntask         {}\nmodel        {} parameters, tokens {:?}, width {}, \
         {} blocks, {} heads\nnetwork      {} parameters, {}\n{tensors}metric       {}, from {:.4} \
         (best) to {:.4}\nsampler      {:?}, {} steps\non disk      {:.2} MB\nmade from    {}\n",
        path.display(),
        header.task,
        weights.parameters.len(),
        config.tokenization,
        config.width,
        config.blocks,
        config.heads,
        header.layout.num_parameters(),
        header.layout.fingerprint(),
        header.metric,
        range.best,
        range.worst,
        header.sampler.kind,
        header.sampler.steps,
        bytes as f64 / 1e6,
        header.provenance,
    ))
}
