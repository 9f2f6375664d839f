//! Cache lines that are asked for before they are needed, where the compiler can say so: what
//! lies far apart, a processor does not foresee.

use super::LANES;

/// Has values fetched to the second-level cache, to be read.
#[inline(always)]
#[allow(unsafe_code)]
pub(super) fn to_read<F>(values: &[F]) {
    for line in values.chunks(LANES) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T1};
            // SAFETY: the instruction is part of every x86-64, and changes nothing but caches.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

/// Has the cache lines of values fetched to be written.
#[inline(always)]
#[allow(unsafe_code)]
pub(super) fn to_write<F>(values: &[F]) {
    for line in values.chunks(LANES) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_mm_prefetch, _MM_HINT_ET0};
            // SAFETY: as above; processors that do not know the instruction do nothing.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.as_ptr().cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}
