//! Files of the IDX format, as MNIST comes in, gzipped or not.
//!
//! A magic number (two zero bytes, the type of the values, the number of axes),
//! the length of each axis as a big-endian `u32`, then the values.
//!
//! # Source
//! LeCun, Cortes, Burges: "The MNIST database of handwritten digits", section
//! "file formats".

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::TaskError;

/// Type of the values: unsigned bytes.
const BYTES: u8 = 0x08;
/// First bytes of a gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Most values of a file that is read: more is a broken header.
const MOST: usize = 1 << 30;

/// An array of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idx {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// The values.
    pub values: Vec<u8>,
}

/// Reads the file of this name in a folder; other spellings of the name that are
/// in use, and `.gz` after it, are found as well.
pub fn read(folder: &Path, name: &str) -> Result<Idx, TaskError> {
    let path = find(folder, name)?;
    let problem = |problem: String| TaskError::File { path: path.clone(), problem };
    let bytes = unpacked(&path).map_err(|error| problem(error.to_string()))?;
    parse(&bytes).map_err(problem)
}

fn find(folder: &Path, name: &str) -> Result<PathBuf, TaskError> {
    // `train-images-idx3-ubyte` and `train-images.idx3-ubyte`.
    let dotted = name.replacen("-idx", ".idx", 1);
    for name in [name, &dotted] {
        for ending in ["", ".gz"] {
            let path = folder.join(format!("{name}{ending}"));
            if path.is_file() {
                return Ok(path);
            }
        }
    }
    let problem = "it is not there, expected it with or without .gz after its name".to_owned();
    Err(TaskError::File { path: folder.join(name), problem })
}

/// Bytes of a file, inflated if it is gzipped, whatever it is called.
pub(super) fn unpacked(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    if !bytes.starts_with(&GZIP) {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    let limit = MOST as u64;
    flate2::read::MultiGzDecoder::new(&bytes[..]).take(limit).read_to_end(&mut plain)?;
    Ok(plain)
}

fn parse(bytes: &[u8]) -> Result<Idx, String> {
    let Some((&[a, b, kind, axes], mut rest)) = bytes.split_first_chunk::<4>() else {
        return Err(format!("it has {} bytes, expected an IDX file", bytes.len()));
    };
    if (a, b) != (0, 0) {
        return Err(format!("it starts with {a:02x} {b:02x}, expected an IDX file (00 00)"));
    }
    if kind != BYTES {
        return Err(format!("its values are of type {kind:#04x}, expected bytes ({BYTES:#04x})"));
    }
    let mut shape = Vec::new();
    for _ in 0..axes {
        let Some((length, more)) = rest.split_first_chunk::<4>() else {
            return Err(format!("it ends within the lengths of its {axes} axes"));
        };
        shape.push(u32::from_be_bytes(*length) as usize);
        rest = more;
    }
    let count = shape.iter().try_fold(1usize, |n, &length| n.checked_mul(length));
    match count {
        Some(count) if count == rest.len() && count <= MOST => {
            Ok(Idx { shape, values: rest.to_vec() })
        }
        _ => Err(format!("it holds {} values, expected {shape:?}: it may be cut off", rest.len())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const FILE: [u8; 14] = [0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 2, 7, 9];

    #[test]
    fn plain_and_gzipped_files_under_all_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let expected = Idx { shape: vec![1, 2], values: vec![7, 9] };
        for (name, zipped) in [
            ("a-idx2-ubyte", false),
            ("b.idx2-ubyte", false),
            ("c-idx2-ubyte.gz", true),
            ("d.idx2-ubyte.gz", true),
            ("e-idx2-ubyte.gz", false), // the content counts
        ] {
            let mut bytes = FILE.to_vec();
            if zipped {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                gzip.write_all(&FILE).unwrap();
                bytes = gzip.finish().unwrap();
            }
            std::fs::write(folder.path().join(name), bytes).unwrap();
            let asked = format!("{}-idx2-ubyte", &name[..1]);
            assert_eq!(read(folder.path(), &asked).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn broken_files_say_what_is_wrong() {
        for (bytes, expected) in [
            (&FILE[..3], "has 3 bytes"),
            (&FILE[..13], "holds 1 values, expected [1, 2]"),
            (&FILE[..7], "ends within the lengths"),
            (&[1, 0, 8, 1], "starts with 01 00"),
            (&[0, 0, 13, 1, 0, 0, 0, 0], "of type 0x0d"),
            (&[0, 0, 8, 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255], "holds 0"),
        ] {
            let error = parse(bytes).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let error = read(folder.path(), "train-images-idx3-ubyte").unwrap_err().to_string();
        assert!(error.contains("train-images-idx3-ubyte: it is not there"), "{error}");
        std::fs::write(folder.path().join("x-idx1-ubyte"), [0x1f, 0x8b, 8, 0]).unwrap();
        assert!(matches!(read(folder.path(), "x-idx1-ubyte"), Err(TaskError::File { .. })));
    }
}
