//! The `lopt` command from end to end, at toy scale.

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

fn lopt(arguments: &[&str]) -> Output {
    Command::cargo_bin("lopt").unwrap().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output of a command that must succeed.
fn succeeds(arguments: &[&str]) -> String {
    let output = lopt(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Standard error of a command that must fail with this code, without a panic.
fn fails(arguments: &[&str], code: i32) -> String {
    let output = lopt(arguments);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(!error.contains("panicked"), "{error}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    error
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeeds(arguments)).unwrap()
}

fn record(store: &Path, runs: &str) -> Vec<String> {
    let store = store.to_str().unwrap();
    let arguments = [
        "record", "digits", "--out", store, "--runs", runs, "--steps", "40", "--saves", "8",
        "--json",
    ];
    arguments.map(str::to_owned).to_vec()
}

fn strings(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[test]
fn every_command_explains_itself() {
    assert!(succeeds(&["--help"]).contains("lopt compare digits"));
    assert!(succeeds(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
    for command in [
        "compare",
        "record",
        "train",
        "eval",
        "devices",
        "initialisations",
        "diversity",
        "walk",
        "sample",
        "inspect",
    ] {
        let help = succeeds(&[command, "--help"]);
        for part in ["Usage:", "Examples:", "--json", "--threads"] {
            assert!(help.contains(part), "{command} lacks {part}:\n{help}");
        }
    }
}

#[test]
fn wrong_arguments_end_with_two() {
    assert!(fails(&[], 2).contains("Usage"));
    assert!(fails(&["optimise"], 2).contains("optimise"));
    assert!(fails(&["record", "digits"], 2).contains("--out"));
    assert!(fails(&["record", "letters", "--out", "x"], 2).contains("digits"));
    assert!(fails(&["compare", "--networks", "0"], 2).contains("--networks"));
    assert!(fails(&["compare", "--seed", "2147483648"], 2).contains("--seed"));
    assert!(fails(&["compare", "--threads", "0"], 2).contains("--threads"));
    assert!(fails(&["compare", "--networks", "-1"], 2).contains("-1 is not in 1.."));
    assert!(fails(&["compare", "--prompt", "nan"], 2).contains("expected a finite number"));
    let error = fails(&["eval", "--temperature", "2"], 2);
    assert!(error.contains("`temperature` is 2, expected 0 to 1"), "{error}");
    assert!(fails(&["walk", "--frames", "2"], 2).contains("--frames"));
    assert!(fails(&["diversity", "--samples", "1"], 2).contains("--samples"));
    assert!(fails(&["initialisations", "--updates", "0"], 2).contains("--updates"));
    let late =
        ["record", "digits", "--out", "x", "--runs", "2", "--start-from", "y", "--from-run", "2"];
    assert!(fails(&late, 2).contains("--from-run is 2"));
    assert!(!Path::new("x").exists());
    assert!(fails(&["compare", "mnist", "--data", "."], 1).contains("train-images-idx3-ubyte"));
}

#[test]
fn devices_are_listed_and_those_that_cannot_be_used_say_why() {
    let found = json(&["devices", "--json"]);
    let devices = found["devices"].as_array().unwrap();
    assert_eq!(
        (devices[0]["device"].as_str(), &devices[0]["problem"]),
        (Some("cpu"), &Value::Null)
    );
    assert!(devices.len() > 1);
    let table = succeeds(&["devices"]);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("net.safetensors");
    let out = out.to_str().unwrap();
    for device in &devices[1..] {
        let name = device["device"].as_str().unwrap();
        assert!(table.contains(name), "{table}");
        let sample = ["sample", "digits", "--out", out, "--device", name];
        match device["problem"].as_str() {
            Some(problem) => {
                let error = fails(&sample, 1);
                assert!(error.contains(problem), "{error}");
            }
            None => drop(succeeds(&sample)),
        }
    }
    assert!(fails(&["compare", "--device", "gpu"], 2).contains("cuda:0:bf16"));
    let error = fails(&["sample", "digits", "--out", out, "--device", "cuda:63"], 1);
    assert!(error.starts_with("error: "), "{error}");
}

#[test]
fn data_and_weights_that_a_task_needs_are_asked_for() {
    assert!(fails(&["record", "mnist", "--out", "x"], 1).contains("`--data FOLDER`"));
    assert!(fails(&["eval", "digits", "--data", "."], 1).contains("leave `--data` out"));
    assert!(!Path::new("x").exists());
}

#[test]
fn what_goes_wrong_is_said_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let missing = missing.to_str().unwrap();
    let error = fails(&["inspect", missing], 1);
    assert!(error.starts_with("error: ") && error.contains("missing"), "{error}");
    let error = fails(&["compare", "digits", "--weights", missing], 1);
    assert!(error.contains("caused by"), "{error}");
    let store = folder.path().join("store");
    let store = store.to_str().unwrap();
    let error = fails(&["record", "digits", "--out", store, "--learning-rate=-1"], 1);
    assert!(error.contains("`learning_rate` is -1, expected a positive number"), "{error}");
    for (option, value) in [("--runs", "99999999999999"), ("--saves", "99999999999999")] {
        let error = fails(&["record", "digits", "--out", store, option, value], 1);
        assert!(error.contains("to 2^20"), "{error}");
    }
    let place = folder.path().to_str().unwrap();
    for command in ["compare", "eval", "initialisations", "diversity", "walk", "sample"] {
        let error = fails(&[command, "digits", "--out", place], 1);
        assert!(error.contains("is a folder, expected a file"), "{error}");
    }
    let garbage = folder.path().join("garbage");
    std::fs::write(&garbage, b"not a network").unwrap();
    let garbage = garbage.to_str().unwrap();
    assert!(fails(&["inspect", garbage], 1).contains("garbage"));
    fails(&["eval", "digits", "--weights", garbage], 1);
}

#[test]
fn a_recording_grows_and_keeps_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let first = json(&strings(&record(&store, "3")));
    assert_eq!((&first["kept"], &first["checkpoints"]), (&3.into(), &24.into()));
    let second = json(&strings(&record(&store, "5")));
    assert_eq!(second["kept"], 5);
    assert_eq!(json(&["inspect", store.to_str().unwrap(), "--json"]), second);
    assert!(succeeds(&["inspect", store.to_str().unwrap()]).contains("5 kept"));
    let mut other = record(&store, "5");
    other.extend(["--learning-rate", "0.01"].map(str::to_owned));
    let error = fails(&strings(&other), 1);
    assert!(
        error.contains("recorded with learning_rate 0.1, expected learning_rate 0.01:"),
        "{error}"
    );
}

#[test]
fn a_recording_that_keeps_nothing_fails() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let mut diverges = record(&store, "2");
    diverges.extend(["--learning-rate", "1e30"].map(str::to_owned));
    assert!(fails(&strings(&diverges), 1).contains("none of the 2 runs could be kept"));
}

#[test]
fn the_whole_path_at_toy_scale() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    succeeds(&strings(&record(Path::new(&path("store")), "12")));

    // Runs that are recorded in another way lie in a store of their own.
    let mut slower = record(Path::new(&path("slower")), "4");
    slower.extend(["--learning-rate", "0.01"].map(str::to_owned));
    succeeds(&strings(&slower));

    let (store, weights, log) = (path("store"), path("weights.safetensors"), path("log"));
    let slower = path("slower");
    let mut train = vec![
        "train",
        "digits",
        "--store",
        &store,
        "--store",
        &slower,
        "--out",
        &weights,
        "--steps",
        "12",
        "--batch",
        "4",
        "--width",
        "16",
        "--blocks",
        "1",
        "--held-out",
        "2",
        "--report-every",
        "6",
        "--log",
        &log,
        "--json",
    ];
    let report = json(&train);
    assert_eq!((&report["steps"], &report["runs"]), (&12.into(), &12.into()));
    assert!(report["divergence"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(std::fs::read_to_string(&log).unwrap().lines().count(), 2);
    assert_eq!(json(&train)["first_step"], 12, "a finished training is not made again");
    train.extend(["--warmup", "5"]);
    assert!(fails(&train, 1).contains("--restart"));
    train.push("--restart");
    assert_eq!(json(&train)["first_step"], 0);
    let without = path("without.safetensors");
    let mut plain: Vec<&str> = train
        .iter()
        .map(|&argument| if argument == weights { &without } else { argument })
        .collect();
    plain.extend(["--behavior", "0"]);
    assert!(json(&plain)["divergence"].is_null());
    let header = json(&["inspect", &weights, "--json"]);
    assert_eq!(header["header"]["metric"]["split"], "validation");
    assert_eq!(header["header"]["provenance"]["trainer"]["behavior"], 0.3);
    let recordings = header["header"]["provenance"]["stores"].as_array().unwrap();
    let rate = |store: &Value| store["recording"]["training"]["learning_rate"].clone();
    let rates: Vec<Value> = recordings.iter().map(rate).collect();
    assert_eq!(rates[1], 0.01);
    assert_ne!(rates[0], rates[1]);

    let (report, figure) = (path("report.html"), path("figure.svg"));
    let shared = ["--weights", &weights, "--networks", "4", "--out", &report, "--figure", &figure];
    let mut eval = vec!["eval", "digits", "--prompts", "3", "--json"];
    eval.extend(shared);
    let evaluation = json(&eval);
    assert!(evaluation["prompt_alignment"].is_number());
    assert_eq!(evaluation["prompts"].as_array().unwrap().len(), 4);
    assert_eq!(json(&eval)["observed"], evaluation["observed"], "the seed decides");
    assert!(std::fs::read_to_string(&report).unwrap().contains("Asked for and observed"));

    let mut compare = vec!["compare", "digits", "--steps", "20", "--json"];
    compare.extend(shared);
    let comparison = json(&compare);
    assert_eq!(comparison["networks"], 4);
    for key in [
        "/one_step/test_loss",
        "/one_step/test_error",
        "/one_step/seconds",
        "/recursive/test_loss",
        "/best_of_k/test_loss",
    ] {
        assert!(comparison.pointer(key).is_some_and(Value::is_number), "{key}");
    }
    for key in ["sgd_best", "adam_best", "adam_default"] {
        assert!(comparison["equivalent_steps"].get(key).is_some(), "{key}");
    }
    compare.extend(["--prompt", "-1"]);
    let output = lopt(&compare);
    assert!(text(&output.stderr).contains("outside the trained range"), "{output:?}");
    let clamped: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(clamped["one_step"]["test_loss"], comparison["one_step"]["test_loss"]);
    let page = std::fs::read_to_string(&report).unwrap();
    assert!(page.contains("</html>") && page.contains("<svg") && !page.contains("<script"));
    assert!(std::fs::read_to_string(&figure).unwrap().starts_with("<svg"));

    let network = path("network.safetensors");
    let sample = ["sample", "digits", "--weights", &weights, "--out", &network, "--json"];
    assert_eq!(json(&sample)["after"].as_array().unwrap().len(), 2);
    let again = ["sample", "digits", "--weights", &weights, "--from", &network, "--out", &network];
    assert!(succeeds(&again).contains("after 1 updates"));
}

#[test]
fn weights_are_calibrated_as_they_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let even = folder.path().join("even.safetensors");
    let (bundled, even) = ("weights/digits.safetensors", even.to_str().unwrap());
    let mut calibrate = vec!["calibrate", "digits", "--weights", bundled, "--out", even];
    calibrate.extend(["--networks", "8", "--prompts", "4"]);
    let text = succeeds(&calibrate);
    assert!(text.contains("asked for now") && text.contains(even), "{text}");
    let header = json(&["inspect", even, "--json"]);
    let knots = header["header"]["calibration"]["asked"].as_array().unwrap().len();
    assert!((2..=4).contains(&knots), "{knots}");
    // Not a digit of the parameters is lost, and none is added.
    let size = |path: &str| std::fs::metadata(path).unwrap().len();
    assert!(size(even).abs_diff(size(bundled)) < 2000);
    let network = folder.path().join("network.safetensors");
    let sample = ["sample", "digits", "--weights", even, "--out", network.to_str().unwrap()];
    assert!(succeeds(&sample).contains("after 1 update"));
    let error = fails(&["calibrate", "digits", "--weights", "nothing.safetensors"], 1);
    assert!(error.contains("nothing.safetensors"), "{error}");
}

#[cfg(not(feature = "gym"))]
#[test]
fn control_problems_say_how_to_get_them() {
    for task in ["cartpole", "mountain-car"] {
        let error = fails(&["record", task, "--out", "x"], 1);
        for part in [task, "--features gym", "cmake", "libsdl2-gfx-dev"] {
            assert!(error.contains(part), "{error} lacks {part}");
        }
    }
    assert!(!Path::new("x").exists());
}

#[cfg(feature = "gym")]
#[test]
fn cart_pole_at_toy_scale() {
    control_at_toy_scale("cartpole", ["4", "8"], "450");
}

#[cfg(feature = "gym")]
#[test]
fn mountain_car_at_toy_scale() {
    control_at_toy_scale("mountain-car", ["16", "24"], "-110");
}

/// Records, trains, evaluates and compares, with so many updates and environments.
#[cfg(feature = "gym")]
fn control_at_toy_scale(task: &str, [updates, environments]: [&str; 2], good: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (store, weights, report) = (path("store"), path("weights"), path("report.html"));
    let record = [
        "record",
        task,
        "--out",
        &store,
        "--runs",
        "6",
        "--steps",
        updates,
        "--batch-size",
        environments,
        "--saves",
        "4",
    ];
    succeeds(&record);
    succeeds(&[
        "train",
        task,
        "--store",
        &store,
        "--out",
        &weights,
        "--steps",
        "6",
        "--batch",
        "4",
        "--width",
        "16",
        "--blocks",
        "1",
        "--held-out",
        "1",
        "--queries",
        "16",
    ]);
    let header = json(&["inspect", &weights, "--json"]);
    assert_eq!(header["header"]["metric"]["kind"], "return");
    let shared =
        ["--weights", &weights, "--networks", "3", "--out", &report, "--best-of", "2", "--json"];
    let mut eval = vec!["eval", task, "--prompts", "3"];
    eval.extend(shared);
    assert!(json(&eval)["prompt_alignment"].is_number());
    let film = path("film.svg");
    let mut compare = vec!["compare", task, "--steps", "3", "--episode", &film];
    compare.extend(shared);
    let comparison = json(&compare);
    assert_eq!(comparison["networks"], 3);
    let share = format!("/one_step/share_at_least_{good}");
    for key in [
        "/one_step/mean_return",
        "/one_step/standard_error",
        &share,
        "/recursive/mean_return",
        "/best_of_k/mean_return",
    ] {
        assert!(comparison.pointer(key).is_some_and(Value::is_number), "{key}");
    }
    assert_eq!(comparison["unit"]["name"], "environment steps");
    assert!(std::fs::read_to_string(&film).unwrap().contains("animateTransform"));
    let page = std::fs::read_to_string(&report).unwrap();
    assert!(page.contains("environment steps") && page.contains("An episode before and after"));
}

/// A figure that stands alone, and a report, of a command with the bundled weights.
fn drawn(command: &[&str], folder: &Path) -> (Value, String) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (report, figure) = (path("report.html"), path("figure.svg"));
    let mut arguments = command.to_vec();
    arguments.extend(["--json", "--out", &report, "--figure", &figure]);
    let result = json(&arguments);
    assert_eq!(
        (&result["task"], &result["weights"]),
        (&"digits".into(), &"bundled with lopt".into())
    );
    let page = std::fs::read_to_string(&report).unwrap();
    assert!(page.contains("</html>") && page.contains("<svg") && !page.contains("<script"));
    let figure = std::fs::read_to_string(&figure).unwrap();
    assert!(figure.starts_with("<svg") && figure.trim_end().ends_with("</svg>"));
    (result, figure)
}

#[test]
fn updates_in_a_row_recover_from_unseen_initialisations() {
    let folder = tempfile::tempdir().unwrap();
    let command = ["initialisations", "digits", "--networks", "8", "--updates", "2"];
    let (result, figure) = drawn(&command, folder.path());
    let kinds = result["kinds"].as_array().unwrap();
    let names: Vec<_> = kinds.iter().map(|kind| kind["initialisation"].as_str().unwrap()).collect();
    let expected =
        ["own", "kaiming_normal", "xavier_uniform", "orthogonal", "scaled_0.5", "scaled_2"];
    assert_eq!(names, expected);
    for kind in kinds {
        let loss = |k: usize| kind["after"][k]["test_loss"].as_f64().unwrap();
        assert!(loss(0) > 2.0 && loss(1) < 0.5 * loss(0) && loss(2) < 1.1 * loss(1), "{kind}");
    }
    assert!(
        kinds[1]["after"][0]["test_loss"].as_f64() > kinds[0]["after"][0]["test_loss"].as_f64()
    );
    assert!(figure.contains("Kaiming normal"));
    let text = succeeds(&[&command[..], &["--out", "/dev/null", "--quiet"]].concat());
    assert!(text.contains("orthogonal") && text.contains("updates to match"), "{text}");
}

#[test]
fn samples_are_compared_with_trainings() {
    let folder = tempfile::tempdir().unwrap();
    let command = ["diversity", "digits", "--samples", "3", "--trainings", "2", "--landscape", "4"];
    let (result, figure) = drawn(&command, folder.path());
    let groups = result["groups"].as_array().unwrap();
    let causes: Vec<_> = groups.iter().map(|group| group["cause"].as_str().unwrap()).collect();
    assert_eq!(causes, ["noise", "order", "start"]);
    for (group, networks) in groups.iter().zip([3, 2, 3]) {
        assert_eq!(group["values"].as_array().unwrap().len(), networks);
        assert!(group["validation_loss"].as_f64() < Some(0.5), "{group}");
        assert!(group["apart"].as_f64() > Some(0.0), "noise, order and start each matter");
    }
    assert_eq!(result["landscape"]["values"].as_array().unwrap().len(), 16);
    assert!(figure.contains("data:image/png;base64,"));
    let without = [&command[..4], &["--trainings", "0", "--out", "/dev/null", "--json"]].concat();
    assert_eq!(json(&without)["groups"].as_array().unwrap().len(), 2);
    let one = [&command[..4], &["--trainings", "1", "--out", "/dev/null"]].concat();
    assert!(fails(&one, 1).contains("`trainings` is 1, expected 0, or at least 2"));
}

#[test]
fn a_walk_is_closed_and_keeps_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let strip = folder.path().join("strip.svg");
    let strip = strip.to_str().unwrap();
    let command = ["walk", "digits", "--frames", "12", "--prompt", "0.3", "--strip", strip];
    let (result, figure) = drawn(&command, folder.path());
    let losses = result["course"]["validation_loss"].as_array().unwrap();
    assert_eq!(losses.len(), 12);
    for loss in losses {
        assert!((loss.as_f64().unwrap() - 0.3).abs() < 0.15, "{losses:?}");
    }
    assert!(result["step"].as_f64() > Some(0.0));
    assert!(result["step"].as_f64() < result["across"].as_f64());
    assert_eq!(result["filters"]["shape"], serde_json::json!([1, 8, 8]));
    assert_eq!(figure.matches("repeatCount=\"indefinite\"").count(), 8);
    assert!(std::fs::read_to_string(strip).unwrap().contains("300°"));

    let starts = [&command[..6], &["--starts", "--out", "/dev/null", "--json"]].concat();
    let moved = json(&starts);
    assert!(moved["step"].as_f64() > result["step"].as_f64());
    let random = [&command[..6], &["--sampler", "ddpm", "--out", "/dev/null"]].concat();
    assert!(fails(&random, 1).contains("expected DDIM"));
}

#[cfg(unix)]
mod interrupted {
    use std::process::{Child, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    fn start(arguments: &[&str]) -> Child {
        std::process::Command::new(assert_cmd::cargo::cargo_bin("lopt"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Presses Ctrl-C once `ready`, and returns how the command ended.
    fn interrupt(child: Child, ready: impl Fn() -> bool) -> Output {
        let begin = Instant::now();
        while !ready() && begin.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let id = child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        child.wait_with_output().unwrap()
    }

    #[test]
    fn a_recording_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        let name = store.to_str().unwrap();
        let long = ["record", "digits", "--out", name, "--runs", "100000", "--steps", "40"];
        let inspect = || lopt(&["inspect", name, "--json"]);
        let some = || {
            let summary: Option<Value> = serde_json::from_slice(&inspect().stdout).ok();
            summary.is_some_and(|s| s["kept"].as_u64() > Some(2))
        };
        let output = interrupt(start(&long), some);
        assert_eq!(output.status.code(), Some(130));
        let error = text(&output.stderr);
        assert!(error.contains("give the same command again"), "{error}");
        let kept: Value = serde_json::from_slice(&inspect().stdout).unwrap();
        assert!(kept["kept"].as_u64() > Some(2), "{kept}");
    }

    #[test]
    fn a_training_goes_on_to_the_same_weights() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let store = path("store");
        succeeds(&strings(&record(Path::new(&store), "12")));
        let (log, out) = (path("log"), path("broken.safetensors"));
        let train = |out: &str, log: &str| -> Vec<String> {
            [
                "train",
                "digits",
                "--store",
                &store,
                "--steps",
                "400",
                "--batch",
                "8",
                "--width",
                "32",
                "--blocks",
                "2",
                "--threads",
                "1",
                "--report-every",
                "20",
                "--held-out",
                "2",
                "--out",
                out,
                "--log",
                log,
            ]
            .map(str::to_owned)
            .to_vec()
        };
        let broken = train(&out, &log);
        let output = interrupt(start(&strings(&broken)), || Path::new(&log).exists());
        assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
        assert!(!Path::new(&out).exists());
        succeeds(&strings(&broken));
        let whole = path("whole.safetensors");
        succeeds(&strings(&train(&whole, &path("log2"))));
        let tensors = |path: &str| {
            let bytes = std::fs::read(path).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut all: Vec<_> =
                file.tensors().into_iter().map(|(n, v)| (n, v.data().to_vec())).collect();
            all.sort();
            all
        };
        assert!(tensors(&out) == tensors(&whole));
    }

    #[test]
    fn a_diversity_that_is_ended_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("report.html");
        let name = out.to_str().unwrap();
        let long = ["diversity", "digits", "--trainings", "100000", "--out", name];
        let begin = Instant::now();
        let output = interrupt(start(&long), || begin.elapsed() > Duration::from_secs(2));
        assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("nothing was written"));
        assert!(!out.exists());
    }

    #[test]
    fn a_reader_that_goes_away_is_no_error() {
        use std::io::Read;
        let mut child = start(&["compare", "--help"]);
        drop(child.stdout.take());
        let mut error = String::new();
        child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        child.wait().unwrap();
        assert!(!error.contains("panicked"), "{error}");
    }
}
