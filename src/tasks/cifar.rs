//! CIFAR-10 in its binary format.
//!
//! Files of records: one byte for the class, then 32x32 pixels of red, of green
//! and of blue.
//!
//! # Source
//! Krizhevsky 2009: "Learning multiple layers of features from tiny images".

use std::path::Path;

use super::classifier::CLASSES;
use super::idx::unpacked;
use super::TaskError;

/// Values of an image: three channels of 32x32.
pub const PIXELS: usize = 3 * 32 * 32;

/// Pixels and classes of the files of these names in a folder, one after the other.
pub fn read(folder: &Path, names: &[String]) -> Result<(Vec<u8>, Vec<u8>), TaskError> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for name in names {
        let path = folder.join(name);
        let problem = |problem: String| TaskError::File { path: path.clone(), problem };
        let bytes = unpacked(&path).map_err(|error| problem(error.to_string()))?;
        let (records, rest) = bytes.as_chunks::<{ 1 + PIXELS }>();
        if records.is_empty() || !rest.is_empty() {
            let expected = "a multiple of 3073: it may be cut off, or not the binary version";
            return Err(problem(format!("it has {} bytes, expected {expected}", bytes.len())));
        }
        for [label, image @ ..] in records {
            if usize::from(*label) >= CLASSES {
                return Err(problem(format!("it has a label {label}, expected 0 to 9")));
            }
            labels.push(*label);
            pixels.extend_from_slice(image);
        }
    }
    Ok((pixels, labels))
}
