//! Memory in large pages: a processor finds them faster, for it needs to know fewer.

use super::{EngineError, Float};

/// Zeros, in pages of two megabytes where the system grants them.
///
/// # Errors
/// If there is not enough memory.
pub fn zeros<F: Float>(len: usize) -> Result<Vec<F>, EngineError> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| EngineError::Memory { values: len })?;
    prefer_large(values.spare_capacity_mut());
    values.resize(len, F::zero());
    Ok(values)
}

/// A copy in such pages.
///
/// # Errors
/// If there is not enough memory.
pub fn copied<F: Float>(values: &[F]) -> Result<Vec<F>, EngineError> {
    let mut copy = zeros(values.len())?;
    copy.copy_from_slice(values);
    Ok(copy)
}

/// Asks for large pages, before the memory is first written.
#[cfg(all(target_os = "linux", not(miri)))]
#[allow(unsafe_code)]
fn prefer_large<T>(memory: &mut [T]) {
    /// Bytes of a large page; of small ones on no machine more.
    const LARGE: usize = 2 << 20;
    let bytes = memory.as_mut_ptr_range();
    let start = bytes.start.addr().next_multiple_of(LARGE);
    let end = bytes.end.addr() / LARGE * LARGE;
    if start < end {
        let from = bytes.start.cast::<u8>().wrapping_add(start - bytes.start.addr());
        // SAFETY: from `start` to `end` are whole pages of `memory`, which is borrowed. The
        // advice changes neither values nor access. If it is refused, pages stay small.
        unsafe { libc::madvise(from.cast(), end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn prefer_large<T>(_: &mut [T]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_large_pages_holds_what_is_written() {
        for len in [0, 5, (4 << 20) + 3] {
            let wave: Vec<f32> = (0..len).map(|i| (i % 101) as f32).collect();
            assert!(copied(&wave).unwrap() == wave);
            assert!(zeros::<f64>(len).unwrap().iter().all(|&value| value == 0.0));
        }
        let found = zeros::<f32>(usize::MAX / 8).unwrap_err();
        assert_eq!(found, EngineError::Memory { values: usize::MAX / 8 });
    }
}
