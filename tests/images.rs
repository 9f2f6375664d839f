//! Tasks on image sets, from files that the tests write.

use std::io::Write;
use std::path::Path;

use lopt::metric::Split;
use lopt::tasks::{by_name, Task, TaskError};

/// An IDX file of bytes.
fn idx(shape: &[u32], values: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, shape.len() as u8];
    shape.iter().for_each(|length| file.extend(length.to_be_bytes()));
    file.extend(values);
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Image `n` has the class `n % 10`, and a bright row for each class.
fn pixels(count: usize, size: usize, width: usize) -> Vec<u8> {
    let pixel = |n: usize, i: usize| if i / width % 10 == n % 10 { 200 } else { (i % 7) as u8 };
    (0..count).flat_map(|n| (0..size).map(move |i| pixel(n, i))).collect()
}

fn labels(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n % 10) as u8).collect()
}

/// 240 images to train on and 60 to test, half of the files gzipped.
fn write_mnist(folder: &Path) {
    for (part, count) in [("train", 240), ("t10k", 60)] {
        let images = idx(&[count as u32, 28, 28], &pixels(count, 784, 28));
        let labels = idx(&[count as u32], &labels(count));
        std::fs::write(folder.join(format!("{part}-images-idx3-ubyte.gz")), gzip(&images)).unwrap();
        std::fs::write(folder.join(format!("{part}-labels.idx1-ubyte")), labels).unwrap();
    }
}

fn write_cifar(folder: &Path) {
    let names = (1..=5).map(|i| format!("data_batch_{i}.bin")).chain(["test_batch.bin".into()]);
    for name in names {
        let records = pixels(60, 3072, 32);
        let file: Vec<u8> = records
            .chunks(3072)
            .zip(labels(60))
            .flat_map(|(image, label)| [&[label], image].concat())
            .collect();
        std::fs::write(folder.join(name), file).unwrap();
    }
}

/// Error message of a task that cannot be opened.
fn fails(name: &str, folder: Option<&Path>) -> String {
    match by_name(name, folder) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{name} can be opened"),
    }
}

/// Trains for some steps and returns the losses on the test split before and after.
fn learns(task: &dyn Task, steps: usize) -> [f64; 2] {
    let start = task.initial(3).unwrap();
    let mut training = task.recording().training;
    training.steps = steps;
    let mut losses = Vec::new();
    task.train(&start, 3, &training, &[0, steps], &mut |_, parameters| {
        losses.push(task.measure(parameters, Split::Test).unwrap()[0]);
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    [losses[0], losses[1]]
}

#[test]
fn every_network_learns_its_images() {
    let folder = tempfile::tempdir().unwrap();
    write_mnist(folder.path());
    for (name, parameters) in
        [("mnist", 7960), ("fashion-mnist", 7960), ("mnist-cnn", 5082), ("fashion-mnist-cnn", 5082)]
    {
        let task = by_name(name, Some(folder.path())).unwrap();
        let sizes = [Split::Train, Split::Validation, Split::Test].map(|split| task.size(split));
        let validation = if name.ends_with("cnn") { 8 } else { 20 };
        assert_eq!(sizes, [220, validation, 60], "{name}");
        assert_eq!(task.layout().unwrap().num_parameters(), parameters, "{name}");
        assert_eq!(task.image(), Some([1, 28, 28]));
        let [before, after] = learns(task.as_ref(), 30);
        assert!(after < 0.9 * before, "{name}: from {before} to {after}");
        let network = task.initial(1).unwrap();
        let answers = task.predictions(&network, Split::Test).unwrap();
        let wrong = answers.iter().enumerate().filter(|&(n, &class)| class != n % 10).count();
        let error = task.measure(&network, Split::Test).unwrap()[1];
        assert!((error - 100.0 * wrong as f64 / 60.0).abs() < 1e-9, "{error} {wrong}");
    }
}

#[test]
fn answers_of_networks_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    write_mnist(folder.path());
    for (name, data) in
        [("digits", None), ("mnist", Some(folder.path())), ("mnist-cnn", Some(folder.path()))]
    {
        let task = by_name(name, data).unwrap();
        let (network, other) = (task.initial(1).unwrap(), task.initial(2).unwrap());
        let compare = |seed: u64, predicted: &[f32]| {
            let mut gradient = vec![f32::NAN; predicted.len()];
            let value = task.divergence(seed, 32, predicted, &other, &mut gradient).unwrap();
            (value, gradient)
        };
        let norm = |values: &[f32]| values.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();

        let (same, flat) = compare(0, &other);
        assert!(same.abs() < 1e-6 && norm(&flat) < 1e-5, "{name}: {same} {}", norm(&flat));
        let (value, gradient) = compare(0, &network);
        assert!(value > 1e-3, "{name}: {value}");
        assert_eq!(compare(0, &network), (value, gradient.clone()), "the seed decides");
        assert_ne!(compare(1, &network).0, value);

        // Along the gradient it rises as fast as the gradient is long.
        let (length, h) = (norm(&gradient), 1e-2);
        let at = |step: f64| {
            let moved = |(p, g): (&f32, &f32)| p + (step * f64::from(*g) / length) as f32;
            compare(0, &network.iter().zip(&gradient).map(moved).collect::<Vec<f32>>()).0
        };
        let slope = (at(h) - at(-h)) / (2.0 * h);
        assert!((slope / length - 1.0).abs() < 0.01, "{name}: {slope} {length}");

        let error = task.divergence(0, 32, &network[1..], &other, &mut [0.0; 3]).unwrap_err();
        assert!(error.to_string().contains("expected"), "{error}");
    }
}

#[test]
fn cifar_is_read_from_its_binary_format() {
    let folder = tempfile::tempdir().unwrap();
    write_cifar(folder.path());
    let task = by_name("cifar10", Some(folder.path())).unwrap();
    assert_eq!(task.image(), Some([3, 32, 32]));
    assert_eq!(task.size(Split::Train), 275);
    let [before, after] = learns(task.as_ref(), 20);
    assert!(after < 0.9 * before, "from {before} to {after}");

    let path = folder.path().join("data_batch_3.bin");
    std::fs::write(&path, [0; 3072]).unwrap();
    let error = fails("cifar10", Some(folder.path()));
    assert!(error.contains("data_batch_3.bin: it has 3072 bytes, expected a multiple"), "{error}");
    std::fs::write(&path, [10; 3073]).unwrap();
    assert!(fails("cifar10", Some(folder.path())).contains("label 10, expected 0 to 9"));
    std::fs::remove_file(&path).unwrap();
    assert!(fails("cifar10", Some(folder.path())).contains("data_batch_3.bin"));
}

#[test]
fn what_is_wrong_with_a_folder_is_said() {
    assert!(matches!(by_name("mnist", None), Err(TaskError::NoData { .. })));
    assert!(fails("mnist", None).contains("scripts/fetch-data.sh"));
    assert!(fails("letters", None).contains("fashion-mnist-cnn"));
    let folder = tempfile::tempdir().unwrap();
    assert!(fails("digits", Some(folder.path())).contains("leave `--data` out"));
    assert!(fails("mnist", Some(folder.path())).contains("train-images-idx3-ubyte"));
    for (name, content, expected) in [
        ("train-images-idx3-ubyte", idx(&[240, 32, 32], &[0; 240 * 1024]), "[240, 32, 32]"),
        ("train-images-idx3-ubyte", idx(&[11, 28, 28], &[0; 11 * 784]), "at least 12 images"),
        ("t10k-labels-idx1-ubyte", idx(&[59], &[0; 59]), "expected [60]"),
        ("t10k-labels-idx1-ubyte", idx(&[60], &[11; 60]), "label 11"),
        ("train-labels-idx1-ubyte", vec![0, 0, 8, 1, 0, 0], "ends within"),
    ] {
        write_mnist(folder.path());
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let error = fails("mnist", Some(folder.path()));
        assert!(error.contains(name) && error.contains(expected), "{error}");
        std::fs::remove_file(path).unwrap();
    }
    write_mnist(folder.path());
    by_name("mnist", Some(folder.path())).unwrap();
}
