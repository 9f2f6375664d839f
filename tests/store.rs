//! Checkpoint stores: what is written can be read, whatever happens meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use half::f16;
use lopt::checkpoints::{
    record_runs, Dataset, DatasetConfig, DropReason, Filter, Metadata, Outcome, Parameters,
    Precision, Progress, RecordOptions, Run, RunInfo, RunStatus, Store, StoreError,
};
use lopt::layout::{Layout, LayoutBuilder, Role};
use lopt::metric::Metric;
use rand::{Rng, SeedableRng};

const WIDTH: usize = 300;

fn layout(width: usize) -> Layout {
    let mut builder = LayoutBuilder::new();
    builder.tensor("weight", &[width], Role::Weight);
    builder.finish().unwrap()
}

fn metadata(precision: Precision) -> Metadata {
    let metrics = vec![Metric::VALIDATION_LOSS, Metric::TEST_ERROR];
    Metadata { precision, ..Metadata::new("toy", layout(WIDTH), metrics) }
}

/// Records a run whose content follows from its number.
fn record(run: &mut Run) -> Result<(), StoreError> {
    let (checkpoints, values) = content(run.info().id);
    for (i, (flat, metrics)) in checkpoints.iter().zip(&values).enumerate() {
        run.at(10 * i as u64).record_flat(flat, metrics)?;
    }
    Ok(())
}

fn content(id: u64) -> (Vec<Vec<f32>>, Vec<[f64; 2]>) {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(id);
    let count = 2 + (id % 7) as usize;
    (0..count)
        .map(|i| {
            let flat = (0..WIDTH).map(|_| rng.gen_range(-1.0..1.0)).collect();
            (flat, [1.0 / (i + 1) as f64, rng.gen()])
        })
        .unzip()
}

fn check_content(store: &Store, id: u64) {
    let run = store.read_run(id).unwrap();
    let (checkpoints, values) = content(id);
    let flat = checkpoints.concat();
    match run.parameters {
        Parameters::F32(found) => assert_eq!(found, flat),
        Parameters::F16(found) => {
            assert_eq!(found, flat.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>());
        }
    }
    assert_eq!(run.metrics, values.concat());
    let iterations: Vec<u64> = (0..checkpoints.len() as u64).map(|i| 10 * i).collect();
    assert_eq!(run.iterations, iterations);
}

fn infos(ids: std::ops::Range<u64>) -> impl Iterator<Item = RunInfo> {
    ids.map(|id| RunInfo {
        hyperparameters: serde_json::json!({ "rate": 0.1 }),
        ..RunInfo::new(id, id)
    })
}

fn record_all(store: &Store, ids: std::ops::Range<u64>, threads: usize) -> Progress {
    let options = RecordOptions { threads, ..Default::default() };
    let report = record_runs(store, infos(ids), &options, record).unwrap();
    assert!(report.failures.is_empty() && !report.cancelled);
    report.progress
}

#[test]
fn what_is_recorded_can_be_read_bit_for_bit() {
    for precision in [Precision::F32, Precision::F16] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("runs");
        let store = Store::create(&path, metadata(precision)).unwrap();
        record_all(&store, 0..20, 2);
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.metadata(), &metadata(precision));
        let runs = store.runs().unwrap();
        assert_eq!(runs.len(), 20);
        for (id, entry) in runs.iter().enumerate() {
            assert_eq!(entry.info, infos(id as u64..id as u64 + 1).next().unwrap());
            check_content(&store, id as u64);
        }
        assert!(matches!(store.read_run(20), Err(StoreError::RunMissing { id: 20 })));
    }
}

#[test]
fn parallel_recording_equals_serial_recording_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let serial = Store::create(folder.path().join("serial"), metadata(Precision::F32)).unwrap();
    record_all(&serial, 0..40, 1);
    let path = folder.path().join("parallel");
    let parallel = Store::create(&path, metadata(Precision::F32)).unwrap();
    assert_eq!(record_all(&parallel, 0..15, 4).kept, 15);
    drop(parallel);
    let parallel = Store::open_or_create(&path, metadata(Precision::F32)).unwrap();
    let progress = record_all(&parallel, 0..40, 4);
    assert_eq!((progress.skipped, progress.kept, progress.done()), (15, 25, 40));
    let config = DatasetConfig { held_out: 10, ..Default::default() };
    let load = |store| Dataset::load(store, &config).unwrap();
    assert_eq!(serial.runs().unwrap(), parallel.runs().unwrap());
    assert_eq!(load(&serial), load(&parallel));
}

#[test]
fn bad_runs_are_dropped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let filter = Filter { parameter_limit: 1e5, ..Default::default() };
    let meta = Metadata { filter, ..metadata(Precision::F16) };
    let store = Store::create(folder.path(), meta).unwrap();
    let bad: [(f32, f64, DropReason); 6] = [
        (f32::NAN, 0.0, DropReason::NonFiniteParameter),
        (f32::NEG_INFINITY, 0.0, DropReason::NonFiniteParameter),
        (0.0, f64::NAN, DropReason::NonFiniteMetric),
        (-2e5, 0.0, DropReason::HugeParameter),
        (0.0, -2e6, DropReason::HugeMetric),
        (7e4, 0.0, DropReason::HalfOverflow),
    ];
    for (id, (parameter, metric, reason)) in bad.into_iter().enumerate() {
        let mut run = store.begin_run(RunInfo::new(id as u64, 0)).unwrap();
        run.record_flat(&[0.0; WIDTH], &[1.0, 1.0]).unwrap();
        let mut flat = [0.0; WIDTH];
        flat[WIDTH - 1] = parameter;
        run.record_flat(&flat, &[1.0, metric]).unwrap();
        assert_eq!(run.reason(), Some(reason));
        run.record_flat(&[0.0; WIDTH], &[1.0, 1.0]).unwrap();
        assert_eq!(run.finish().unwrap(), Outcome::Dropped(reason));
        assert!(store.read_run(id as u64).is_err());
    }
    let mut run = store.begin_run(RunInfo::new(10, 0)).unwrap();
    run.record_flat(&[0.0; WIDTH], &[1.0, 1.0]).unwrap();
    assert_eq!(run.finish().unwrap(), Outcome::Dropped(DropReason::TooFewCheckpoints));

    let summary = store.summary().unwrap();
    assert_eq!(summary.kept, 0);
    assert_eq!(summary.dropped[&DropReason::NonFiniteParameter], 2);
    assert_eq!(summary.dropped.values().sum::<usize>(), 7);
    assert!(summary.to_string().contains("2 non-finite parameter"), "{summary}");
    serde_json::to_string(&summary).unwrap();
    // Dropped runs are not made again.
    assert_eq!(record_all(&store, 0..6, 1).skipped, 6);
    assert!(matches!(
        store.run(0).unwrap().unwrap().status,
        RunStatus::Dropped { reason: DropReason::NonFiniteParameter }
    ));
}

#[test]
fn a_run_that_is_not_finished_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(folder.path(), metadata(Precision::F32)).unwrap();
    let mut run = store.begin_run(RunInfo::new(0, 0)).unwrap();
    record(&mut run).unwrap();
    drop(run);
    assert!(store.runs().unwrap().is_empty());
    // Two handles record the same run: the second to finish is told.
    let mut first = store.begin_run(RunInfo::new(0, 0)).unwrap();
    let mut second = store.begin_run(RunInfo::new(0, 0)).unwrap();
    record(&mut first).unwrap();
    record(&mut second).unwrap();
    first.finish().unwrap();
    assert!(matches!(second.finish(), Err(StoreError::RunExists { id: 0 })));
    assert!(matches!(store.begin_run(RunInfo::new(0, 0)), Err(StoreError::RunExists { id: 0 })));
    check_content(&store, 0);
}

#[test]
fn wrong_lengths_and_orders_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(folder.path(), metadata(Precision::F32)).unwrap();
    let mut run = store.begin_run(RunInfo::new(3, 0)).unwrap();
    let e = run.record_flat(&[0.0; 3], &[1.0, 1.0]).unwrap_err();
    assert!(matches!(e, StoreError::Parameters { id: 3, .. }));
    let e = run.record_flat(&[0.0; WIDTH], &[1.0]).unwrap_err();
    let expected = "has 1 metrics, expected 2: validation loss, test error";
    assert!(e.to_string().contains(expected), "{e}");
    run.at(5).record_flat(&[0.0; WIDTH], &[1.0, 1.0]).unwrap();
    let e = run.at(5).record_flat(&[0.0; WIDTH], &[1.0, 1.0]).unwrap_err();
    assert!(matches!(e, StoreError::Iteration { found: 5, previous: 5, .. }));
    assert_eq!(run.checkpoints(), 1);
}

#[test]
fn a_store_made_for_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    drop(Store::create(path, metadata(Precision::F32)).unwrap());
    let open = |meta| Store::open_or_create(path, meta).unwrap_err();

    let e = open(Metadata { layout: layout(7), ..metadata(Precision::F32) });
    let source = std::error::Error::source(&e).unwrap().to_string();
    assert!(source.contains("[300]") && source.contains("[7]"), "{source}");
    let e = open(metadata(Precision::F16)).to_string();
    assert!(e.contains("precision f32, expected f16"), "{e}");
    let metrics = vec![Metric::TEST_LOSS];
    let e = open(Metadata { metrics, ..metadata(Precision::F32) }).to_string();
    assert!(e.contains("metrics validation loss, test error, expected test loss"), "{e}");
    let e = open(Metadata { task: "other".into(), ..metadata(Precision::F32) }).to_string();
    assert!(e.contains("task toy, expected other"), "{e}");
    let provenance = serde_json::json!("elsewhere");
    Store::open_or_create(path, Metadata { provenance, ..metadata(Precision::F32) }).unwrap();
    let e = Store::create(path, metadata(Precision::F32)).unwrap_err();
    assert!(matches!(e, StoreError::AlreadyExists { .. }));
}

#[test]
fn foreign_files_are_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    assert!(matches!(Store::open(&missing), Err(StoreError::NotFound { .. })));
    assert!(!missing.exists());
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(matches!(Store::open(&empty), Err(StoreError::NotAStore { .. })));
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    let file = folder.path().join("file");
    fs::write(&file, "text").unwrap();
    assert!(matches!(Store::open(&file), Err(StoreError::NotAStore { .. })));
    let e = Store::create(&file, metadata(Precision::F32));
    assert!(matches!(e, Err(StoreError::NotAStore { .. })));

    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    for len in [0usize, 1, 100, 151, 152, 4096, 8192, 100_000] {
        for fill in [0, 1, 2] {
            let path = folder.path().join(format!("foreign{len}-{fill}"));
            fs::create_dir(&path).unwrap();
            let bytes: Vec<u8> = (0..len).map(|_| if fill == 0 { 0 } else { rng.gen() }).collect();
            fs::write(path.join("data.mdb"), &bytes).unwrap();
            for result in [
                Store::open(&path),
                Store::open_or_create(&path, metadata(Precision::F32)),
                Store::create(&path, metadata(Precision::F32)),
            ] {
                let e = result.unwrap_err();
                assert!(
                    matches!(
                        e,
                        StoreError::NotAStore { .. }
                            | StoreError::Truncated { .. }
                            | StoreError::AlreadyExists { .. }
                    ),
                    "{e}"
                );
            }
            assert_eq!(fs::read(path.join("data.mdb")).unwrap(), bytes);
        }
    }
}
