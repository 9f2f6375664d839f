//! Parameters in the precision that they are stored in.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::Precision;

/// Parameters of checkpoints, one after another, in the precision that they are
/// stored in.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameters {
    /// Stored as they are.
    F32(Vec<f32>),
    /// Stored in half precision.
    F16(Vec<f16>),
}

impl Parameters {
    /// `len` zeros.
    pub(super) fn zeros(precision: Precision, len: usize) -> Self {
        match precision {
            Precision::F32 => Self::F32(vec![0.0; len]),
            Precision::F16 => Self::F16(vec![f16::ZERO; len]),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The precision.
    pub fn precision(&self) -> Precision {
        match self {
            Self::F32(_) => Precision::F32,
            Self::F16(_) => Precision::F16,
        }
    }

    /// Writes the values from `first` on to `values`.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn read(&self, first: usize, values: &mut [f32]) {
        match self {
            Self::F32(all) => values.copy_from_slice(&all[first..first + values.len()]),
            Self::F16(all) => all[first..first + values.len()].convert_to_f32_slice(values),
        }
    }

    /// Appends values, rounded if need be.
    pub(super) fn push(&mut self, values: &[f32]) {
        match self {
            Self::F32(all) => all.extend_from_slice(values),
            Self::F16(all) => {
                let first = all.len();
                all.resize(first + values.len(), f16::ZERO);
                all[first..].convert_from_f32_slice(values);
            }
        }
    }

    /// The values as they are stored, in the byte order of the machine: LMDB
    /// files are bound to it anyway.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice(values),
            Self::F16(values) => bytemuck::cast_slice(values),
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice_mut(values),
            Self::F16(values) => bytemuck::cast_slice_mut(values),
        }
    }
}
