//! Compiles the kernels for a device, and keeps what NVRTC made.
//!
//! What is kept lies in the folder that `LOPT_CACHE` names, or `lopt` in the user's cache
//! (`XDG_CACHE_HOME`, or `.cache` at home). Its name is a hash of the source, the options and
//! NVRTC's version, so it is never out of date; a file that was cut short or changed is not
//! used. Without such a folder every process compiles them anew, which takes seconds.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use super::kernels::SOURCE;
use crate::engine::DeviceError;

/// Bytes of the hash at the end of a kept file.
const HASH: usize = 32;

/// Code of the kernels that the driver loads: for this device, or for an older one that this one
/// can run, where NVRTC does not know it.
pub(super) fn kernels(capability: (i32, i32), nvrtc: (i32, i32)) -> Result<Vec<u8>, DeviceError> {
    let target = Target::new(capability, &architectures()?);
    let options = target.options();
    let key = key(&options, nvrtc);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, code)) = last.as_ref().filter(|(other, _)| *other == key) {
        return Ok(code.clone());
    }
    let file = cache_folder(|name| std::env::var_os(name).map(PathBuf::from))
        .map(|folder| folder.join(format!("kernels-{key}.bin")));
    let code = match file.as_deref().and_then(read) {
        Some(code) => code,
        None => {
            let code = compile(&target, &options)?;
            if let Some(file) = file {
                // Whatever keeps it from being written, the code is there.
                let _ = write(&file, &code);
            }
            code
        }
    };
    *last = Some((key, code.clone()));
    Ok(code)
}

/// What was last compiled or read in this process, and its key.
static LAST: Mutex<Option<(String, Vec<u8>)>> = Mutex::new(None);

/// What to compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// Machine code of exactly this architecture.
    Machine(i32),
    /// Code that drivers translate for newer architectures.
    Virtual(i32),
}

impl Target {
    fn new((major, minor): (i32, i32), known: &[i32]) -> Self {
        let own = 10 * major + minor;
        let older = known.iter().copied().filter(|&architecture| architecture <= own).max();
        match older {
            Some(architecture) if architecture != own => Self::Virtual(architecture),
            _ => Self::Machine(own),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Machine(architecture) => format!("sm_{architecture}"),
            Self::Virtual(architecture) => format!("compute_{architecture}"),
        }
    }

    fn options(self) -> Vec<String> {
        vec![format!("--gpu-architecture={}", self.name()), "--std=c++17".to_owned()]
    }
}

fn key(options: &[String], (major, minor): (i32, i32)) -> String {
    let mut hash = Sha256::new();
    for text in [SOURCE, &options.join(" "), &format!("{major}.{minor}")] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash.finalize()[..12].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn cache_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let named = |name: &str| variable(name).filter(|path| !path.as_os_str().is_empty());
    named("LOPT_CACHE")
        .or_else(|| named("XDG_CACHE_HOME").map(|folder| folder.join("lopt")))
        .or_else(|| named("HOME").map(|folder| folder.join(".cache/lopt")))
}

/// Code that was kept, if it is whole.
fn read(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(file).ok()?;
    let code = bytes.len().checked_sub(HASH)?;
    let hash = bytes.split_off(code);
    (Sha256::digest(&bytes)[..] == hash[..]).then_some(bytes)
}

/// Keeps code, whole or not at all.
fn write(file: &Path, code: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let part = file.with_extension(format!("part-{}", std::process::id()));
    let bytes = [code, &Sha256::digest(code)[..]].concat();
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, file));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn failed(call: &'static str) -> impl Fn(result::NvrtcError) -> DeviceError {
    move |error| DeviceError::Call { call, problem: error.to_string() }
}

/// The architectures that NVRTC compiles for.
fn architectures() -> Result<Vec<i32>, DeviceError> {
    let mut count = 0;
    // SAFETY: writes one number to where it is told.
    let status = unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) };
    status.result().map_err(failed("nvrtcGetNumSupportedArchs"))?;
    let mut architectures = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: writes as many numbers as it has just said, to room for as many.
    let status = unsafe { sys::nvrtcGetSupportedArchs(architectures.as_mut_ptr()) };
    status.result().map_err(failed("nvrtcGetSupportedArchs"))?;
    Ok(architectures)
}

/// A program of NVRTC, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was created by NVRTC and is destroyed once.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn compile(target: &Target, options: &[String]) -> Result<Vec<u8>, DeviceError> {
    let source = CString::new(SOURCE).map_err(|_| DeviceError::Compile {
        architecture: target.name(),
        log: "the source has a zero in it".into(),
    })?;
    let program = result::create_program(&source, Some(c"lopt.cu"));
    let program = Program(program.map_err(failed("nvrtcCreateProgram"))?);
    // SAFETY: the program lives until the end of this function.
    if unsafe { result::compile_program(program.0, options) }.is_err() {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
        // SAFETY: NVRTC ends its log in a zero; an empty one is not looked at.
        let text = |log: &[_]| unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().into();
        let log = if log.is_empty() { String::new() } else { text(&log) };
        return Err(DeviceError::Compile { architecture: target.name(), log });
    }
    let mut size = 0;
    // SAFETY: the program lives, and each call writes to where it is told: its size first, and
    // then as many bytes.
    unsafe {
        match target {
            Target::Machine(_) => {
                let status = sys::nvrtcGetCUBINSize(program.0, &mut size);
                status.result().map_err(failed("nvrtcGetCUBINSize"))?;
                let mut code = vec![0u8; size];
                let status = sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast());
                status.result().map_err(failed("nvrtcGetCUBIN"))?;
                Ok(code)
            }
            Target::Virtual(_) => {
                let status = sys::nvrtcGetPTXSize(program.0, &mut size);
                status.result().map_err(failed("nvrtcGetPTXSize"))?;
                let mut code = vec![0u8; size];
                let status = sys::nvrtcGetPTX(program.0, code.as_mut_ptr().cast());
                status.result().map_err(failed("nvrtcGetPTX"))?;
                Ok(code)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_nvrtc_does_not_know_gets_code_for_an_older_one() {
        let known = [80, 86, 90, 100, 120];
        assert_eq!(Target::new((9, 0), &known), Target::Machine(90));
        assert_eq!(Target::new((12, 1), &known), Target::Virtual(120));
        assert_eq!(Target::new((8, 9), &known), Target::Virtual(86));
        assert_eq!(Target::Virtual(86).options()[0], "--gpu-architecture=compute_86");
    }

    #[test]
    fn nvrtc_makes_machine_code_and_code_for_drivers() {
        // SAFETY: only tries whether the library can be loaded.
        if !unsafe { sys::is_culib_present() } {
            return eprintln!("skipped: NVRTC cannot be loaded");
        }
        let known = architectures().unwrap();
        assert!(known.contains(&90), "{known:?}");
        for target in [Target::Machine(90), Target::Virtual(80)] {
            let code = compile(&target, &target.options()).unwrap();
            let has = |text: &str| code.windows(text.len()).any(|part| part == text.as_bytes());
            assert_eq!(code.starts_with(b"\x7fELF"), matches!(target, Target::Machine(_)));
            assert!(crate::engine::cuda::kernels::KERNELS.into_iter().all(has));
        }
        let unknown = Target::Machine(1);
        let error = compile(&unknown, &unknown.options()).unwrap_err();
        assert!(error.to_string().contains("sm_1"), "{error}");
    }

    #[test]
    fn what_is_kept_is_read_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deeper/kernels.bin");
        write(&file, b"code").unwrap();
        assert_eq!(read(&file).unwrap(), b"code");
        let bytes = std::fs::read(&file).unwrap();
        for cut in 0..bytes.len() {
            std::fs::write(&file, &bytes[..cut]).unwrap();
            assert_eq!(read(&file), None, "{cut}");
        }
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn the_key_and_the_folder_follow_what_they_are_made_of() {
        let options = Target::Machine(90).options();
        assert_eq!(key(&options, (13, 0)), key(&options, (13, 0)));
        assert_ne!(key(&options, (13, 0)), key(&options, (13, 1)));
        assert_ne!(key(&options, (13, 0)), key(&Target::Machine(80).options(), (13, 0)));
        let set = |names: &'static [&'static str]| {
            cache_folder(|name| names.contains(&name).then(|| PathBuf::from(format!("/{name}"))))
        };
        assert_eq!(set(&[]), None);
        assert_eq!(set(&["HOME"]).unwrap(), Path::new("/HOME/.cache/lopt"));
        assert_eq!(set(&["HOME", "XDG_CACHE_HOME"]).unwrap(), Path::new("/XDG_CACHE_HOME/lopt"));
        assert_eq!(
            set(&["HOME", "XDG_CACHE_HOME", "LOPT_CACHE"]).unwrap(),
            Path::new("/LOPT_CACHE")
        );
    }
}
