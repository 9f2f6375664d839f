//! A device that runs the kernels on the CPU, for tests.
//!
//! A C++ compiler makes a library of the kernels' own text and a header that stands for CUDA.
//! Every kernel runs twice, with blocks and threads in ascending and in descending order, and
//! must leave the same bits: what depends on the order is a race. Memory of the device is memory
//! of the host.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_void, CStr, CString};
use std::fmt::Write as _;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::backend::{staged_len, Address, Argument, Backend, Product};
use super::kernels::{KERNELS, SOURCE};
use crate::engine::DeviceError;

type Run = unsafe extern "C" fn(
    *const c_char,
    c_uint,
    c_uint,
    c_uint,
    *mut *mut c_void,
    c_int,
) -> *const c_char;

/// The compiled kernels, which one thread runs at a time; none where there is no compiler.
fn library() -> Option<&'static Mutex<libloading::Library>> {
    static LIBRARY: OnceLock<Option<Mutex<libloading::Library>>> = OnceLock::new();
    LIBRARY.get_or_init(|| build().map(Mutex::new)).as_ref()
}

fn build() -> Option<libloading::Library> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        return None;
    }
    let mut text = format!("{}{SOURCE}", include_str!("emulated/shim.h"));
    text.push_str("const emulation::Entry emulation::table[] = {\n");
    for name in KERNELS {
        writeln!(text, "{{\"{name}\", [](void** a) {{ emulation::call({name}, a); }}}},").unwrap();
    }
    text.push_str("{nullptr, nullptr}};\n");
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("kernels.cpp"), folder.path().join("kernels.so"));
    std::fs::write(&source, text).unwrap();
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-o"])
        .args([&library, &source])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the kernels do not compile:\n{said}");
    // SAFETY: loading it runs no code of its own.
    Some(unsafe { libloading::Library::new(&library) }.unwrap())
}

/// Work that was recorded.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Zero(Address, usize),
    Launch(&'static str, [usize; 2], usize, Vec<Argument>),
}

/// A device that is the CPU.
pub(crate) struct Emulator {
    memory: Vec<Vec<u128>>,
    places: [Address; 2],
    posts: [Vec<u8>; 2],
    recording: Option<Vec<Work>>,
    /// Whether every kernel runs in both orders.
    twice: bool,
    /// Bytes that can be allocated in all.
    pub limit: usize,
}

impl Emulator {
    /// A device, or none with a message where there is no C++ compiler.
    pub fn new() -> Option<Self> {
        if library().is_none() {
            eprintln!("skipped: there is no C++ compiler to run CUDA kernels on the CPU");
            return None;
        }
        Some(Self {
            memory: Vec::new(),
            places: [0; 2],
            posts: Default::default(),
            recording: None,
            twice: true,
            limit: 1 << 30,
        })
    }

    /// Runs kernels once only.
    pub fn fast() -> Option<Self> {
        Self::new().map(|emulator| Self { twice: false, ..emulator })
    }

    /// The bytes from an address on, which must be allocated.
    fn bytes(&mut self, at: Address, length: usize) -> &mut [u8] {
        let inside = |block: &&mut Vec<u128>| {
            let start = block.as_ptr() as u64;
            (start..start + 16 * block.len() as u64).contains(&at)
        };
        let block = self.memory.iter_mut().find(inside).expect("memory of the device");
        let start = (at - block.as_ptr() as u64) as usize;
        &mut bytemuck::cast_slice_mut(block)[start..start + length]
    }

    /// Notes work if it is being recorded; whether it is to be done now.
    fn now(&mut self, command: impl FnOnce() -> Work) -> bool {
        match &mut self.recording {
            Some(commands) => {
                commands.push(command());
                false
            }
            None => true,
        }
    }

    fn run(
        &mut self,
        kernel: &'static str,
        blocks: [usize; 2],
        threads: usize,
        arguments: &[Argument],
        descending: bool,
    ) -> Result<(), DeviceError> {
        let library = library().unwrap().lock().unwrap_or_else(PoisonError::into_inner);
        let mut pointers: Vec<*mut c_void> =
            arguments.iter().map(|value| (&raw const *value) as *mut c_void).collect();
        let name = CString::new(kernel).unwrap();
        let [x, y] = blocks.map(|count| count as c_uint);
        // SAFETY: the library has this function. Kernels write to memory that the arguments
        // point to, which is this device's; nobody else runs one.
        let problem = unsafe {
            let run = library.get::<Run>(b"lopt_run\0").unwrap();
            run(name.as_ptr(), x, y, threads as c_uint, pointers.as_mut_ptr(), descending.into())
        };
        if problem.is_null() {
            return Ok(());
        }
        // SAFETY: it is a text that ends in a zero and stays.
        let problem = unsafe { CStr::from_ptr(problem) }.to_string_lossy().into_owned();
        Err(DeviceError::Call { call: kernel, problem })
    }
}

impl Backend for Emulator {
    type Recording = Vec<Work>;

    fn allocate(&mut self, bytes: usize) -> Result<Address, DeviceError> {
        assert!(self.recording.is_none(), "nothing is allocated while work is recorded");
        let free = self.free_memory()?;
        if bytes > free {
            return Err(DeviceError::Memory { needed: bytes >> 20, free: free >> 20 });
        }
        self.memory.push(vec![0u128; bytes.div_ceil(256).max(1) * 16]);
        Ok(self.memory.last().unwrap().as_ptr() as Address)
    }

    fn free(&mut self, at: Address) -> Result<(), DeviceError> {
        assert!(self.recording.is_none(), "nothing is freed while work is recorded");
        let before = self.memory.len();
        self.memory.retain(|block| block.as_ptr() as Address != at);
        assert_eq!(self.memory.len() + 1, before, "memory is freed once");
        Ok(())
    }

    fn free_memory(&mut self) -> Result<usize, DeviceError> {
        let taken = self.memory.iter().map(|block| 16 * block.len()).sum();
        Ok(self.limit.saturating_sub(taken))
    }

    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        assert!(self.recording.is_none(), "nothing is uploaded while work is recorded");
        self.bytes(to, bytes.len()).copy_from_slice(bytes);
        Ok(())
    }

    fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        assert!(self.recording.is_none(), "nothing is downloaded while work is recorded");
        bytes.copy_from_slice(self.bytes(from, bytes.len()));
        Ok(())
    }

    fn zero(&mut self, at: Address, bytes: usize) -> Result<(), DeviceError> {
        if self.now(|| Work::Zero(at, bytes)) {
            self.bytes(at, bytes).fill(0);
        }
        Ok(())
    }

    fn launch(
        &mut self,
        kernel: &'static str,
        blocks: [usize; 2],
        threads: usize,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        if !self.now(|| Work::Launch(kernel, blocks, threads, arguments.to_vec())) {
            return Ok(());
        }
        if !self.twice {
            return self.run(kernel, blocks, threads, arguments, false);
        }
        let before = self.memory.clone();
        // A clone lies elsewhere: the blocks themselves stay, their values come back.
        self.run(kernel, blocks, threads, arguments, true)?;
        let descending = self.memory.clone();
        for (block, before) in self.memory.iter_mut().zip(&before) {
            block.copy_from_slice(before);
        }
        self.run(kernel, blocks, threads, arguments, false)?;
        match self.memory == descending {
            true => Ok(()),
            false => Err(DeviceError::Call { call: kernel, problem: "it has a race".into() }),
        }
    }

    fn multiply(&mut self, product: &Product) -> Result<(), DeviceError> {
        let (kernel, blocks, arguments) = product.kernel();
        self.launch(kernel, blocks, 256, &arguments)
    }

    fn stage(&mut self, place: usize, parts: &[&[u8]]) -> Result<Address, DeviceError> {
        if self.places[place] != 0 {
            self.free(self.places[place])?;
        }
        let at = self.allocate(parts.iter().map(|part| staged_len(part.len())).sum())?;
        self.places[place] = at;
        let mut start = at;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            self.bytes(start, part.len()).copy_from_slice(part);
            start += staged_len(part.len()) as u64;
        }
        Ok(at)
    }

    fn await_staged(&mut self, _place: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    fn release(&mut self, _place: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    fn post(&mut self, place: usize, from: Address, bytes: usize) -> Result<(), DeviceError> {
        self.posts[place] = self.bytes(from, bytes).to_vec();
        Ok(())
    }

    fn collect(&mut self, place: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        bytes.copy_from_slice(&self.posts[place]);
        Ok(())
    }

    fn begin_recording(&mut self) -> Result<(), DeviceError> {
        assert!(self.recording.is_none(), "one recording at a time");
        self.recording = Some(Vec::new());
        Ok(())
    }

    fn end_recording(&mut self) -> Result<Vec<Work>, DeviceError> {
        Ok(self.recording.take().expect("a recording"))
    }

    fn replay(&mut self, recording: &Vec<Work>) -> Result<(), DeviceError> {
        for command in recording {
            match command {
                Work::Zero(at, bytes) => self.zero(*at, *bytes)?,
                Work::Launch(kernel, blocks, threads, arguments) => {
                    self.launch(kernel, *blocks, *threads, arguments)?;
                }
            }
        }
        Ok(())
    }
}
