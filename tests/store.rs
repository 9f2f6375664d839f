//! Checkpoint stores: what is written can be read, whatever happens meanwhile.

use std::fs;
use std::io::{BufRead, BufReader, Read};
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
fn the_parameters_of_a_model_are_recorded_in_order() {
    use dfdx::prelude::*;
    use lopt::Network;
    #[lopt::network]
    struct Mlp {
        hidden: Linear<3, 4>,
        activation: ReLU,
        output: Linear<4, 2>,
    }
    let folder = tempfile::tempdir().unwrap();
    let metrics = vec![Metric::VALIDATION_LOSS];
    let meta = Metadata::new("mlp", Mlp::layout().unwrap(), metrics);
    let store = Store::create(folder.path(), meta).unwrap();
    let dev = Cpu::default();
    let single = dev.build_module::<Mlp, f32>();
    let double = dev.build_module::<Mlp, f64>();
    let mut run = store.begin_run(RunInfo::new(0, 0)).unwrap();
    run.record(&single, &[2.0]).unwrap();
    run.record(&double, &[1.0]).unwrap();
    run.finish().unwrap();
    let mut expected = lopt::network::flatten(&single).unwrap();
    expected.extend(lopt::network::flatten(&double).unwrap().iter().map(|&v: &f64| v as f32));
    assert_eq!(store.read_run(0).unwrap().parameters, Parameters::F32(expected));

    let mut run = store.begin_run(RunInfo::new(1, 0)).unwrap();
    let wrong = dev.build_module::<Linear<2, 2>, f32>();
    let e = run.record(&wrong, &[1.0]).unwrap_err();
    assert!(matches!(e, StoreError::ParameterCount { id: 1, .. }), "{e}");
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
    assert!(matches!(e, StoreError::ParameterCount { id: 3, .. }));
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

/// Opens the store at `path` and reads every run. Whatever can be read is what
/// was recorded.
fn read_all(path: &Path) -> Result<Vec<u64>, StoreError> {
    let store = Store::open(path)?;
    let ids: Vec<u64> = store.runs()?.iter().map(|entry| entry.info.id).collect();
    for &id in &ids {
        store.read_run(id)?;
        check_content(&store, id);
    }
    Ok(ids)
}

fn copy_with(bytes: &[u8], folder: &Path, name: String) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("data.mdb"), bytes).unwrap();
    path
}

#[test]
fn a_store_that_is_cut_off_is_an_error_at_every_length() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole");
    let store = Store::create(&path, metadata(Precision::F32)).unwrap();
    record_all(&store, 0..60, 1);
    drop(store);
    let whole = fs::read(path.join("data.mdb")).unwrap();
    let pages = whole.len() / 4096;
    let mut lengths = std::collections::BTreeSet::from([
        0, 1, 15, 16, 151, 152, 4095, 4096, 4097, 4247, 4248, 8191, 8192,
    ]);
    lengths.extend((0..pages).step_by(7).map(|page| 4096 * page));
    lengths.extend((1..40).map(|i| whole.len() * i / 40));
    lengths.extend([whole.len() - 4096, whole.len() - 1]);
    for len in lengths {
        let cut = copy_with(&whole[..len], folder.path(), format!("cut{len}"));
        let e = read_all(&cut).unwrap_err();
        assert!(matches!(e, StoreError::Truncated { .. }), "{len}: {e}");
        // A writer neither uses nor replaces it.
        let e = Store::open_or_create(&cut, metadata(Precision::F32)).unwrap_err();
        assert!(matches!(e, StoreError::Truncated { .. }), "{len}: {e}");
        assert_eq!(fs::read(cut.join("data.mdb")).unwrap(), whole[..len]);

        // As a copy that was broken off may be: the right length, but zeros.
        let mut zeroed = whole[..len].to_vec();
        zeroed.resize(whole.len(), 0);
        if zeroed != whole {
            let zeroed = copy_with(&zeroed, folder.path(), format!("zeroed{len}"));
            read_all(&zeroed).unwrap_err();
        }
    }
    assert_eq!(read_all(&path).unwrap().len(), 60);
}

#[test]
fn a_damaged_store_is_an_error_or_reads_as_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole");
    let store = Store::create(&path, metadata(Precision::F16)).unwrap();
    record_all(&store, 0..60, 1);
    drop(store);
    let whole = fs::read(path.join("data.mdb")).unwrap();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut errors = 0;
    for case in 0..400 {
        let mut bytes = whole.clone();
        // Bytes of headers are hit more often: those break LMDB.
        for _ in 0..rng.gen_range(1..20) {
            let page = rng.gen_range(0..bytes.len() / 4096) * 4096;
            let within = if rng.gen() { 32 } else { 4096 };
            bytes[page + rng.gen_range(0..within)] = rng.gen();
        }
        if rng.gen_ratio(1, 4) {
            let at = rng.gen_range(0..bytes.len() - 4096);
            rng.fill(&mut bytes[at..at + 4096]);
        }
        let path = copy_with(&bytes, folder.path(), format!("damaged{case}"));
        errors += usize::from(read_all(&path).is_err());
        // Writing must not crash either; LMDB reads the list of free pages.
        if let Ok(store) = Store::open_or_create(&path, metadata(Precision::F16)) {
            let mut run = store.begin_run(RunInfo::new(1000, 0)).unwrap();
            run.record_flat(&[0.0; WIDTH], &[1.0, 1.0]).unwrap();
            run.record_flat(&[0.0; WIDTH], &[1.0, 1.0]).unwrap();
            run.finish().ok();
        }
        fs::remove_dir_all(path).unwrap();
    }
    assert!(errors > 200, "only {errors} of 400 were noticed");
}

/// Number at an offset, in the byte order of the machine.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(number)
}

/// What chance does not hit: pages that are well formed, and that LMDB does not
/// survive. Offsets are those of LMDB on 64-bit machines.
#[test]
#[cfg(all(target_pointer_width = "64", target_endian = "little"))]
fn a_store_that_is_made_to_break_lmdb_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole");
    let store = Store::create(&path, metadata(Precision::F32)).unwrap();
    record_all(&store, 0..60, 1);
    drop(store);
    let whole = fs::read(path.join("data.mdb")).unwrap();
    let meta = if number::<8>(&whole, 144) > number::<8>(&whole, 4096 + 144) { 0 } else { 4096 };
    let [free, main] = [80, 128].map(|at| 4096 * number::<8>(&whole, meta + at) as usize);
    let flags = |page: usize| number::<2>(&whole, page + 10);
    let node = |page: usize| page + number::<2>(&whole, page + 16) as usize;
    assert_eq!((flags(free), flags(main)), (2, 1), "a leaf and a branch");
    let leaf = 4096 * number::<4>(&whole, node(main)) as usize;
    assert_eq!(flags(leaf), 2);

    let refused = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        let path = copy_with(&bytes, folder.path(), name.to_owned());
        let e = read_all(&path).expect_err(name);
        assert!(matches!(e, StoreError::Damaged { .. }), "{name}: {e}");
    };
    refused("tree in a tree", &|bytes| bytes[node(leaf) + 4] |= 2);
    refused("duplicates", &|bytes| bytes[node(leaf) + 4] |= 4);
    refused("branch of one", &|bytes| bytes[main + 12] = 18);
    refused("short list of free pages", &|bytes| bytes[node(free)..][..4].fill(0));
    // A count that no memory is enough for.
    let (from, to) = (
        &br#"{"rate":0.1},"status":"kept","checkpoints":"#[..],
        br#"{},"status":"kept","checkpoints":7777777777"#,
    );
    refused("many checkpoints", &|bytes| {
        let places: Vec<_> =
            (0..bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from)).collect();
        assert!(places.len() >= 60);
        places.iter().for_each(|&at| bytes[at..][..to.len()].copy_from_slice(to));
    });
}

#[test]
fn stores_of_a_later_version_and_of_other_programs_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new");
    drop(Store::create(&path, metadata(Precision::F32)).unwrap());
    let file = path.join("data.mdb");
    let mut bytes = fs::read(&file).unwrap();
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|w| w == what);
    let at = find(&bytes, b"\"version\":1,").unwrap();
    bytes[at + 10] = b'7';
    fs::write(&file, &bytes).unwrap();
    let e = Store::open(&path).unwrap_err();
    assert!(matches!(e, StoreError::NewerFormat { found: 7, supported: 1, .. }), "{e}");
    let at = find(&bytes, b"lopt checkpoints").unwrap();
    bytes[at] = b'L';
    fs::write(&file, &bytes).unwrap();
    let e = Store::open_or_create(&path, metadata(Precision::F32)).unwrap_err();
    assert!(matches!(e, StoreError::NotAStore { .. }), "{e}");
    assert_eq!(fs::read(&file).unwrap(), bytes);
}

#[test]
fn one_handle_writes_and_others_read_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let writer = Store::create(folder.path(), metadata(Precision::F32)).unwrap();
    let e = Store::open_or_create(folder.path(), metadata(Precision::F32)).unwrap_err();
    assert!(matches!(e, StoreError::BeingWritten { .. }), "{e}");
    let reader = Store::open(folder.path()).unwrap();
    record_all(&writer, 0..3, 1);
    assert_eq!(reader.runs().unwrap().len(), 3);
    let e = reader.begin_run(RunInfo::new(9, 9)).unwrap_err();
    assert!(matches!(e, StoreError::ReadOnly { .. }), "{e}");
    // A run keeps the right to write until it is finished.
    let mut run = writer.begin_run(RunInfo::new(3, 3)).unwrap();
    drop(writer);
    assert!(Store::open_or_create(folder.path(), metadata(Precision::F32)).is_err());
    record(&mut run).unwrap();
    run.finish().unwrap();
    Store::open_or_create(folder.path(), metadata(Precision::F32)).unwrap();
    check_content(&reader, 3);
}

#[test]
fn a_store_that_is_removed_while_it_is_open_is_not_mixed_up_with_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runs");
    let old = Store::create(&path, metadata(Precision::F32)).unwrap();
    fs::remove_dir_all(&path).unwrap();
    let e = Store::create(&path, metadata(Precision::F32)).unwrap_err();
    assert!(matches!(e, StoreError::StillOpen { .. }), "{e}");
    drop(old);
    let new = Store::create(&path, metadata(Precision::F32)).unwrap();
    record_all(&new, 0..3, 1);
}

#[test]
fn a_recording_that_is_cancelled_keeps_finished_runs() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(folder.path(), metadata(Precision::F32)).unwrap();
    let cancel = Arc::new(AtomicBool::new(false));
    let calls = AtomicUsize::new(0);
    let progress = |progress: &Progress| {
        calls.fetch_add(1, Ordering::Relaxed);
        if progress.kept == 5 {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let options =
        RecordOptions { threads: 2, cancel: Some(cancel.clone()), progress: Some(&progress) };
    let report = record_runs(&store, infos(0..1000), &options, record).unwrap();
    assert!(report.cancelled && report.failures.is_empty());
    assert!((5..=7).contains(&report.progress.kept), "{report:?}");
    assert_eq!(store.runs().unwrap().len(), report.progress.kept);
    assert_eq!(calls.load(Ordering::Relaxed), 1 + report.progress.kept);
    cancel.store(false, Ordering::Relaxed);
    assert_eq!(record_all(&store, 0..20, 2).done(), 20);
}

#[test]
fn an_error_of_one_run_is_reported_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(folder.path(), metadata(Precision::F32)).unwrap();
    let options = RecordOptions { threads: 3, ..Default::default() };
    let report = record_runs(&store, infos(0..20), &options, |run| {
        record(run)?;
        match run.info().id {
            id if id % 5 == 3 => run.record_flat(&[], &[]),
            _ => Ok(()),
        }
    })
    .unwrap();
    assert_eq!((report.progress.kept, report.progress.failed), (16, 4));
    assert_eq!(report.failures.iter().map(|f| f.id).collect::<Vec<_>>(), [3, 8, 13, 18]);
    assert_eq!(record_all(&store, 0..20, 2).kept, 4);
}

const CHILD: &str = "LOPT_TEST_STORE";

/// Not a test by itself: what the tests below run in another process. Records
/// until it is killed or fails, and says which runs it has finished.
#[test]
fn child() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let store = match Store::open_or_create(path, metadata(Precision::F32)) {
        Ok(store) => store,
        Err(e) => return println!("\nerror {e:?}"),
    };
    println!("\nopen");
    let next = store.runs().unwrap().last().map_or(0, |entry| entry.info.id + 1);
    let next = std::sync::atomic::AtomicU64::new(next);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| loop {
                let id = next.fetch_add(1, Ordering::Relaxed);
                let mut run = store.begin_run(RunInfo::new(id, id)).unwrap();
                record(&mut run).unwrap();
                match run.finish() {
                    Ok(_) => println!("\nfinished {id}"),
                    Err(e) => return println!("\nerror {e:?}"),
                }
            });
        }
    });
}

fn command(path: &Path, shell: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{shell} exec \"$0\" --exact child --nocapture")]);
    command.arg(std::env::current_exe().unwrap()).env(CHILD, path);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn finished(output: &str) -> Vec<u64> {
    output.lines().filter_map(|line| line.strip_prefix("finished ")?.parse().ok()).collect()
}

#[test]
fn a_recorder_that_is_killed_leaves_every_finished_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runs");
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
    let mut known = std::collections::BTreeSet::new();
    for round in 0..40 {
        let mut child = command(&path, "").spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        // Some rounds kill while the store is made or opened, some while it is written.
        while round % 2 == 1 && finished(&said).is_empty() {
            assert!(output.read_line(&mut said).unwrap() > 0, "{said}");
        }
        std::thread::sleep(Duration::from_micros(rng.gen_range(500..40_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        output.read_to_string(&mut said).unwrap();
        known.extend(finished(&said));
        match read_all(&path) {
            Ok(ids) => {
                let ids = std::collections::BTreeSet::from_iter(ids);
                assert!(known.is_subset(&ids), "round {round}");
                known = ids;
            }
            // Killed before there was a store.
            Err(StoreError::NotFound { .. } | StoreError::NotAStore { .. }) => {
                assert!(known.is_empty() && !path.join("data.mdb").exists(), "round {round}");
            }
            Err(e) => panic!("round {round}: {e:?}"),
        }
    }
    assert!(known.len() >= 20, "only {} runs in 40 rounds", known.len());
}

fn wait_for(child: &mut Child, word: &str) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(word)), "the child says `{word}`");
    // Read on, so that the child is not stopped by a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
}

#[test]
fn another_process_may_read_but_not_write() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = command(folder.path(), "").spawn().unwrap();
    wait_for(&mut child, "finished");
    let e = Store::open_or_create(folder.path(), metadata(Precision::F32)).unwrap_err();
    assert!(matches!(e, StoreError::BeingWritten { .. }), "{e}");
    let mut seen = 0;
    for _ in 0..20 {
        // Opened anew each time, while the other process writes.
        seen = read_all(folder.path()).unwrap().len().max(seen);
    }
    assert!(seen > 0);
    child.kill().unwrap();
    child.wait().unwrap();
    Store::open_or_create(folder.path(), metadata(Precision::F32)).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // A limit on the size of a file is met like a full disk, and needs no rights.
    for blocks in [10, 200, 1000, 3000] {
        let path = folder.path().join(blocks.to_string());
        let shell = format!("trap '' XFSZ; ulimit -f {blocks};");
        let output = command(&path, &shell).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let error = output.lines().find(|line| line.starts_with("error")).unwrap_or(&output);
        let full = error.contains("DiskFull") || error.contains("ShortWrite");
        assert!(full, "{blocks}: {output}");
        // With room again, everything is there, and recording goes on.
        let store = Store::open_or_create(&path, metadata(Precision::F32)).unwrap();
        let finished = finished(&output);
        assert!(blocks < 1000 || finished.len() > 10, "{blocks}: {output}");
        finished.iter().for_each(|&id| check_content(&store, id));
        let runs = finished.iter().max().map_or(0, |id| id + 1) + 20;
        record_all(&store, 0..runs, 2);
        drop(store);
        assert_eq!(read_all(&path).unwrap().len() as u64, runs);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn limited_address_space_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    // In KiB: far less than is set aside where there is no limit.
    let mut child = command(folder.path(), "ulimit -v 4000000;").spawn().unwrap();
    wait_for(&mut child, "finished");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!read_all(folder.path()).unwrap().is_empty());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]
    #[test]
    fn any_run_is_read_as_it_was_recorded(
        values in proptest::collection::vec((-1e3f32..=1e3, -1e6f64..=1e6), 2..20),
        seed: u64,
        half: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let precision = if half { Precision::F16 } else { Precision::F32 };
        let meta = Metadata::new("any", layout(1), vec![Metric::TEST_LOSS]);
        let store = Store::create(folder.path(), Metadata { precision, ..meta }).unwrap();
        let info = RunInfo::new(u64::MAX, seed);
        let mut run = store.begin_run(info.clone()).unwrap();
        for &(parameter, metric) in &values {
            run.record_flat(&[parameter], &[metric]).unwrap();
        }
        run.finish().unwrap();
        let run = store.read_run(u64::MAX).unwrap();
        let (flat, metrics): (Vec<f32>, Vec<f64>) = values.into_iter().unzip();
        assert_eq!(run.entry.info, info);
        assert_eq!(run.metrics, metrics);
        let expected = match precision {
            Precision::F32 => Parameters::F32(flat),
            Precision::F16 => Parameters::F16(flat.into_iter().map(f16::from_f32).collect()),
        };
        assert_eq!(run.parameters, expected);
    }
}
