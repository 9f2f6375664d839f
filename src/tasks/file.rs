//! Networks of a task as files that dfdx reads and writes.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};

use crate::layout::Layout;

/// Why a network could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkFileError {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// File that was opened.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// File that was to be written.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not in safetensors format, cut off, or lacks a tensor.
    #[error("{} is not a network in safetensors format", path.display())]
    Format {
        /// File that was opened.
        path: PathBuf,
        /// What is wrong with it.
        source: SafeTensorError,
    },
    /// A tensor has another shape or type.
    #[error("tensor `{tensor}` of {} is {found}, expected {expected}", path.display())]
    Tensor {
        /// File that was opened.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Type and shape found.
        found: String,
        /// Type and shape expected.
        expected: String,
    },
}

/// Reads a network that dfdx has saved, as a flat vector. Tensors that the layout
/// does not have are passed over.
///
/// # Errors
/// If the file cannot be read, or a tensor is missing or of another shape.
pub fn load_network(path: impl AsRef<Path>, layout: &Layout) -> Result<Vec<f32>, NetworkFileError> {
    let path = path.as_ref();
    let owned = || path.to_owned();
    let bytes =
        std::fs::read(path).map_err(|source| NetworkFileError::Read { path: owned(), source })?;
    let format = |source| NetworkFileError::Format { path: owned(), source };
    let file = SafeTensors::deserialize(&bytes).map_err(format)?;
    let mut flat = Vec::with_capacity(layout.num_parameters());
    for spec in layout.tensors() {
        let view = file.tensor(&spec.name).map_err(format)?;
        if view.dtype() != Dtype::F32 || view.shape() != spec.shape {
            return Err(NetworkFileError::Tensor {
                path: owned(),
                tensor: spec.name.clone(),
                found: format!("{:?} {:?}", view.dtype(), view.shape()),
                expected: format!("F32 {:?}", spec.shape),
            });
        }
        flat.extend(
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        );
    }
    Ok(flat)
}

/// Writes a flat vector as a network that dfdx's `load_safetensors` reads.
///
/// # Errors
/// If the file cannot be written.
///
/// # Panics
/// If the vector is too short for the layout.
pub fn save_network(
    path: impl AsRef<Path>,
    layout: &Layout,
    flat: &[f32],
) -> Result<(), NetworkFileError> {
    let path = path.as_ref();
    let bytes: Vec<u8> = flat.iter().flat_map(|value| value.to_le_bytes()).collect();
    let format = |source| NetworkFileError::Format { path: path.to_owned(), source };
    let mut views = Vec::new();
    for spec in layout.tensors() {
        let range = spec.range();
        let data = &bytes[4 * range.start..4 * range.end];
        let view = TensorView::new(Dtype::F32, spec.shape.clone(), data).map_err(format)?;
        views.push((spec.name.clone(), view));
    }
    let file = safetensors::serialize(views, None).map_err(format)?;
    std::fs::write(path, file)
        .map_err(|source| NetworkFileError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use dfdx::prelude::*;

    use super::*;
    use crate::network::{flatten, Built, Network};
    use crate::tasks::DigitsMlp;

    #[test]
    fn dfdx_reads_what_is_written_and_the_other_way_round() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.safetensors");
        let layout = DigitsMlp::layout().unwrap();
        let flat: Vec<f32> = (0..layout.num_parameters()).map(|i| i as f32).collect();
        save_network(&path, &layout, &flat).unwrap();
        let device = Cpu::default();
        let mut model: Built<DigitsMlp, f32, Cpu> = device.build_module::<DigitsMlp, f32>();
        model.load_safetensors(&path).unwrap();
        assert_eq!(flatten(&model).unwrap(), flat);
        model.save_safetensors(&path).unwrap();
        assert_eq!(load_network(&path, &layout).unwrap(), flat);
    }

    #[test]
    fn foreign_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.safetensors");
        let layout = DigitsMlp::layout().unwrap();
        assert!(matches!(load_network(&path, &layout), Err(NetworkFileError::Read { .. })));
        std::fs::write(&path, b"nothing").unwrap();
        assert!(matches!(load_network(&path, &layout), Err(NetworkFileError::Format { .. })));
        let mut other = crate::layout::LayoutBuilder::new();
        other.scope("hidden", |b| b.linear(2, 2, true));
        let other = other.finish().unwrap();
        save_network(&path, &other, &[0.0; 6]).unwrap();
        assert!(matches!(load_network(&path, &layout), Err(NetworkFileError::Tensor { .. })));
    }
}
