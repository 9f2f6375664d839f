//! What a matrix product can reach on this machine: large square matrices, one thread.

use lopt_peers::measure;

/// Rows and columns.
const SIZE: usize = 1536;

#[allow(unsafe_code)]
fn main() -> anyhow::Result<()> {
    let seconds: f64 = std::env::args().nth(1).unwrap_or_else(|| "1".into()).parse()?;
    let values = |seed: usize| -> Vec<f32> {
        (0..SIZE * SIZE).map(|i| ((i * 31 + seed) % 17) as f32 / 17.0 - 0.5).collect()
    };
    let (a, b, mut c) = (values(0), values(7), vec![0.0; SIZE * SIZE]);
    let timing = measure(seconds, || {
        let row = SIZE as isize;
        // SAFETY: all three matrices are SIZE by SIZE, row by row, and `c` is only
        // borrowed here.
        unsafe {
            gemm::gemm(
                SIZE,
                SIZE,
                SIZE,
                c.as_mut_ptr(),
                1,
                row,
                false,
                a.as_ptr(),
                1,
                row,
                b.as_ptr(),
                1,
                row,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        Ok(())
    })?;
    let operations = 2.0 * (SIZE as f64).powi(3);
    println!(
        "{}",
        serde_json::json!({
            "gflops": operations / timing.cpu_ms / 1e6,
            "best_gflops": operations / timing.best_cpu_ms / 1e6,
        })
    );
    Ok(())
}
