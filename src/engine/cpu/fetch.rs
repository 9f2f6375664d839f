//! Cache lines that are asked for before they are needed: those that lie far apart, a processor
//! does not foresee.

use super::LANES;

/// Has the line that holds a value fetched to the second-level cache, where the compiler can ask
/// for that.
#[inline(always)]
#[allow(unsafe_code)]
pub(super) fn line<F>(value: &F) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T1};
        // SAFETY: the instruction is part of every x86-64, and changes nothing but caches.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Has all lines of a row fetched.
#[inline(always)]
pub(super) fn row<F>(values: &[F]) {
    for value in values.iter().step_by(LANES) {
        line(value);
    }
}
