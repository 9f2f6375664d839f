//! Named `f32` tensors and a JSON header in one safetensors file.
//!
//! Under weights files and training checkpoints. A file is written beside its
//! target and renamed when it is complete, so a full disk or a crash leaves
//! the old file as it was.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Key of the header among the safetensors metadata.
const HEADER_KEY: &str = "lopt";
/// Version of the format, written and expected.
const FORMAT: u32 = 1;

/// Why a weights file or training checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// File that was opened.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file could not be written; what was there before is unchanged.
    #[error("cannot write {}: nothing was changed", path.display())]
    Write {
        /// File that was to be written.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not in safetensors format, or is cut off.
    #[error("not a complete safetensors file")]
    Malformed {
        /// What the parser said.
        source: SafeTensorError,
    },
    /// The file is a safetensors file of some other program.
    #[error("the file has no `{HEADER_KEY}` entry in its metadata, expected a {expected} of lopt")]
    Foreign {
        /// What was expected.
        expected: &'static str,
    },
    /// The file was written by lopt for another purpose or by another version.
    #[error("the file is a {found_kind} of format {found}, expected a {expected_kind} of format {FORMAT}")]
    Kind {
        /// Kind found.
        found_kind: String,
        /// Format found.
        found: u32,
        /// Kind expected.
        expected_kind: &'static str,
    },
    /// The header is not what this version writes.
    #[error("the header is not valid")]
    Header {
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A tensor is missing.
    #[error("tensor `{tensor}` is missing, expected shape {expected:?}")]
    Missing {
        /// Name of the tensor.
        tensor: String,
        /// Shape that the model needs.
        expected: Vec<usize>,
    },
    /// A tensor is there that the model does not have.
    #[error("tensor `{tensor}` is in the file, but not in the model")]
    Unexpected {
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor has another shape than the model needs.
    #[error("tensor `{tensor}` is {found:?} in the file, {expected:?} in the model")]
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the model needs.
        expected: Vec<usize>,
    },
    /// A tensor holds something other than floating point numbers.
    #[error("tensor `{tensor}` is of type {found}, expected F32, F16 or BF16")]
    Type {
        /// Name of the tensor.
        tensor: String,
        /// Type found.
        found: String,
    },
    /// A tensor holds a value that is not finite (in the precision asked for).
    #[error("tensor `{tensor}` holds {value}, expected finite values")]
    NonFinite {
        /// Name of the tensor.
        tensor: String,
        /// The value.
        value: f32,
    },
}

/// Type in which values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats of IEEE 754.
    F16,
    /// 16-bit floats with the exponent of a 32-bit one.
    Bf16,
}

/// A tensor to be written, or expected in a file.
pub(crate) struct Entry<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    pub values: &'a [f32],
}

#[derive(Serialize, Deserialize)]
struct Envelope<H> {
    kind: String,
    format: u32,
    #[serde(flatten)]
    header: H,
}

/// Writes `entries` and `header` to `path`, whole or not at all.
pub(crate) fn write<H: Serialize>(
    path: &Path,
    kind: &'static str,
    header: &H,
    entries: &[(Entry<'_>, Precision)],
) -> Result<(), FileError> {
    let mut encoded = Vec::with_capacity(entries.len());
    for (entry, precision) in entries {
        encoded.push(encode(entry, *precision)?);
    }
    let mut views = Vec::with_capacity(entries.len());
    for ((entry, _), (dtype, bytes)) in entries.iter().zip(&encoded) {
        let view = TensorView::new(*dtype, entry.shape.to_vec(), bytes)
            .map_err(|source| FileError::Malformed { source })?;
        views.push((entry.name, view));
    }
    let envelope = Envelope { kind: kind.to_owned(), format: FORMAT, header };
    let json = serde_json::to_string(&envelope).map_err(|source| FileError::Header { source })?;
    let metadata = HashMap::from([(HEADER_KEY.to_owned(), json)]);
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|source| FileError::Malformed { source })?;
    replace(path, &bytes).map_err(|source| FileError::Write { path: path.to_owned(), source })
}

/// Puts `bytes` in the place of `path` in one step.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if path.metadata().is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        // A device or a pipe, as `/dev/null`, must not be replaced by a file.
        return std::fs::write(path, bytes);
    }
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(part);
    let written = File::create(&part).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    });
    if written.is_err() {
        // The first error is the one to report; the leftover is ours.
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn encode(entry: &Entry<'_>, precision: Precision) -> Result<(Dtype, Vec<u8>), FileError> {
    let non_finite = |value: f32| FileError::NonFinite { tensor: entry.name.to_owned(), value };
    let mut bytes = Vec::with_capacity(entry.values.len() * 4);
    for &value in entry.values {
        let stored = match precision {
            Precision::F32 => {
                bytes.extend(value.to_le_bytes());
                value
            }
            Precision::F16 => {
                let half = f16::from_f32(value);
                bytes.extend(half.to_le_bytes());
                half.to_f32()
            }
            Precision::Bf16 => {
                let half = bf16::from_f32(value);
                bytes.extend(half.to_le_bytes());
                half.to_f32()
            }
        };
        if !stored.is_finite() {
            return Err(non_finite(value));
        }
    }
    let dtype = match precision {
        Precision::F32 => Dtype::F32,
        Precision::F16 => Dtype::F16,
        Precision::Bf16 => Dtype::BF16,
    };
    Ok((dtype, bytes))
}

/// A file that has been read and whose header is understood.
pub(crate) struct Contents<'a, H> {
    pub header: H,
    tensors: SafeTensors<'a>,
}

impl<'a, H: DeserializeOwned> Contents<'a, H> {
    /// Parses the bytes of a file.
    pub fn parse(bytes: &'a [u8], kind: &'static str) -> Result<Self, FileError> {
        let malformed = |source| FileError::Malformed { source };
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
        let json = metadata.metadata().as_ref().and_then(|map| map.get(HEADER_KEY));
        let json = json.ok_or(FileError::Foreign { expected: kind })?;
        // The kind first: the rest of another kind's header would not parse.
        #[derive(Deserialize)]
        struct Label {
            kind: String,
            format: u32,
        }
        let invalid = |source| FileError::Header { source };
        let label: Label = serde_json::from_str(json).map_err(invalid)?;
        if label.kind != kind || label.format != FORMAT {
            return Err(FileError::Kind {
                found_kind: label.kind,
                found: label.format,
                expected_kind: kind,
            });
        }
        let envelope: Envelope<H> = serde_json::from_str(json).map_err(invalid)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(malformed)?;
        Ok(Self { header: envelope.header, tensors })
    }

    /// Reads one tensor, checking name, shape, type and values.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, FileError> {
        let view = self.tensors.tensor(name).map_err(|_| FileError::Missing {
            tensor: name.to_owned(),
            expected: shape.to_vec(),
        })?;
        if view.shape() != shape {
            return Err(FileError::Shape {
                tensor: name.to_owned(),
                found: view.shape().to_vec(),
                expected: shape.to_vec(),
            });
        }
        let halves = |convert: fn([u8; 2]) -> f32| {
            view.data().chunks_exact(2).map(|b| convert([b[0], b[1]])).collect::<Vec<f32>>()
        };
        let values = match view.dtype() {
            Dtype::F32 => {
                let words = view.data().chunks_exact(4);
                words.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Dtype::F16 => halves(|b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => halves(|b| bf16::from_le_bytes(b).to_f32()),
            other => {
                return Err(FileError::Type {
                    tensor: name.to_owned(),
                    found: format!("{other:?}"),
                })
            }
        };
        match values.iter().find(|value| !value.is_finite()) {
            Some(&value) => Err(FileError::NonFinite { tensor: name.to_owned(), value }),
            None => Ok(values),
        }
    }

    /// Checks that the file holds no tensor besides `expected`.
    pub fn check_names<'n>(
        &self,
        expected: impl Iterator<Item = &'n str>,
    ) -> Result<(), FileError> {
        let expected: std::collections::HashSet<&str> = expected.collect();
        let mut names = self.tensors.names();
        names.sort_unstable();
        match names.iter().find(|name| !expected.contains(**name)) {
            Some(name) => Err(FileError::Unexpected { tensor: name.to_string() }),
            None => Ok(()),
        }
    }
}

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(path).map_err(|source| FileError::Read { path: path.to_owned(), source })
}
