//! `lopt devices`.

use clap::Args;
use lopt::engine::devices;
use serde_json::json;

use super::output::{print, print_json, Failure};
use super::terminal::Terminal;

/// List what G.pt can run on, and why it cannot run on the rest
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lopt devices
  lopt compare digits --device cuda")]
pub struct Arguments {}

pub fn run(_arguments: &Arguments, terminal: &Terminal) -> Result<(), Failure> {
    let reports = devices();
    if terminal.json {
        let list: Vec<_> = reports
            .iter()
            .map(|report| {
                json!({
                    "device": report.device,
                    "name": report.name,
                    "free_mib": report.memory.map(|(free, _)| free),
                    "memory_mib": report.memory.map(|(_, all)| all),
                    "usable": report.problem.is_none(),
                    "problem": report.problem.as_ref().map(ToString::to_string),
                })
            })
            .collect();
        return print_json(&json!({ "devices": list }));
    }
    let mut text = String::new();
    for report in reports {
        let memory = report
            .memory
            .map_or(String::new(), |(free, all)| format!(", {free} of {all} MiB of memory free"));
        let usable = report
            .problem
            .map_or("can be used".to_owned(), |problem| format!("cannot be used: {problem}"));
        text.push_str(&format!("{:<8} {}{memory}: {usable}\n", report.device, report.name));
    }
    print(&text)
}
