//! A network on dfdx's own `Cuda` device beside the same one on its `Cpu`: trained,
//! recorded, and updated by G.pt. Fails where the two differ.
//!
//! dfdx runs nvcc when it is built for `Cuda`; the script gets one:
//!
//! ```text
//! scripts/gpu/dfdx-cuda.sh cargo run --release --features dfdx-cuda --example cuda_network
//! ```

use dfdx::prelude::*;
use lopt::checkpoints::{Metadata, RunInfo, Store};
use lopt::metric::{Metric, Split};
use lopt::network::{flatten, unflatten, Built};
use lopt::optimizer::Adapter;
use lopt::tasks::{Digits, DigitsMlp, Task};
use lopt::{Gpt, LearnedOptimizer, Network, Pretrained};

type Model<D> = Built<DigitsMlp, f32, D>;
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Updates of SGD, each on all training images.
const UPDATES: u64 = 50;
/// Largest difference of a parameter after them. Both devices compute in `f32`, but add up
/// in another order.
const TOLERANCE: f32 = 1e-3;

/// What became of a network on one device.
struct Outcome {
    /// Parameters after SGD.
    trained: Vec<f32>,
    /// Parameters after one update of G.pt from the same start.
    updated: Vec<f32>,
    /// Parameters of the last checkpoint that was recorded.
    recorded: Vec<f32>,
}

/// Trains, records and updates on any device: nothing in here names one.
fn run<D>(device: &D, start: &[f32], digits: &Digits) -> Result<Outcome>
where
    D: Device<f32> + DeviceBuildExt,
{
    let mut model: Model<D> = device.build_module::<DigitsMlp, f32>();
    unflatten(&mut model, start)?;
    if flatten(&model)? != start {
        return Err("what was written to the device is not what is read from it".into());
    }

    let folder = tempfile::tempdir()?;
    let metadata = Metadata::new("digits", DigitsMlp::layout()?, vec![Metric::VALIDATION_LOSS]);
    let store = Store::create(folder.path().join("runs"), metadata)?;
    let mut recording = store.begin_run(RunInfo::new(0, 0))?;
    recording.record(&model, &[digits.validation_loss(&model)?])?;

    let images = digits.images(Split::Train);
    let count = images.len();
    let pixels: Vec<f32> = (0..count).flat_map(|i| images.row(i).to_vec()).collect();
    let mut labels = vec![0.0; 10 * count];
    for (row, &digit) in labels.chunks_exact_mut(10).zip(images.labels()) {
        row[digit] = 1.0;
    }
    let pixels = device.tensor_from_vec(pixels, (count, Const::<64>));
    let labels = device.tensor_from_vec(labels, (count, Const::<10>));
    let mut sgd = Adapter::sgd(&model, SgdConfig { lr: 0.1, ..Default::default() })?;
    for _ in 0..UPDATES {
        let scores = model.forward(pixels.clone().traced(model.alloc_grads()));
        let gradients = cross_entropy_with_logits_loss(scores, labels.clone()).backward();
        sgd.try_update(&mut model, Some(&gradients))?;
    }
    let trained = flatten(&model)?;
    recording.at(UPDATES).record(&model, &[digits.validation_loss(&model)?])?;
    recording.finish()?;
    let mut recorded = vec![0.0; start.len()];
    store.read_run(0)?.parameters.read(start.len(), &mut recorded);

    unflatten(&mut model, start)?;
    let mut gpt = Gpt::pretrained(&model, Pretrained::Digits)?;
    gpt.observe(digits.validation_loss(&model)?);
    gpt.try_update(&mut model, None::<&Gradients<f32, D>>)?;
    Ok(Outcome { trained, updated: flatten(&model)?, recorded })
}

/// dfdx's device, or why there is none: dfdx 0.13 panics where there is no driver.
fn cuda() -> Result<Cuda> {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let built = std::panic::catch_unwind(|| Cuda::try_build(0, 0));
    std::panic::set_hook(loud);
    match built {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(error)) => Err(format!("dfdx cannot use CUDA device 0: {error:?}").into()),
        Err(_) => Err("found no usable NVIDIA driver, expected libcuda.so.1 with a CUDA device: \
                       install the driver (`nvidia-smi` shows whether it works)"
            .into()),
    }
}

fn check(what: &str, error: f32, tolerance: f32) -> Result<()> {
    println!("{what:<44} {error:>9.2e} of {tolerance:.0e}");
    // Written so that NaN fails.
    let within = error <= tolerance;
    within.then_some(()).ok_or_else(|| format!("{what}: {error} is over {tolerance}").into())
}

/// Largest difference of two parameters.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let worse = |worst: f32, d: f32| if d > worst || d.is_nan() { d } else { worst };
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, worse)
}

fn compare() -> Result<()> {
    let device = cuda()?;
    let digits = Digits::load()?;
    let host = Cpu::seed_from_u64(2_000_000_000);
    let start = flatten(&host.build_module::<DigitsMlp, f32>())?;
    let on_host = run(&host, &start, &digits)?;
    let on_device = run(&device, &start, &digits)?;
    check(
        "after SGD, largest difference",
        distance(&on_device.trained, &on_host.trained),
        TOLERANCE,
    )?;
    check(
        "recorded, from what was in the model",
        distance(&on_device.recorded, &on_device.trained),
        0.0,
    )?;
    check("after G.pt, largest difference", distance(&on_device.updated, &on_host.updated), 0.0)?;
    println!("validation loss {:.3}", digits.measure(&on_device.updated, Split::Validation)?[0]);
    Ok(())
}

fn main() -> std::process::ExitCode {
    match compare() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
