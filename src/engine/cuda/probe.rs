//! What there is to run on, and what is missing.

#![allow(unsafe_code)]

use cudarc::driver::sys::cudaError_enum as Code;
use cudarc::driver::{result, sys, CudaContext, DriverError};

use crate::engine::{DeviceError, DeviceReport};

/// Oldest driver, as it counts itself.
const DRIVER: i32 = 12_000;
const UPDATE: &str = "install a newer driver for the GPU";
const LIBRARIES: &str =
    "install the CUDA toolkit 12 or 13, or `pip install nvidia-cuda-nvrtc nvidia-cublas`, and name \
     the folder of its libraries in LD_LIBRARY_PATH";

/// What the driver says went wrong, in one line.
pub(super) fn call(call: &'static str) -> impl Fn(DriverError) -> DeviceError {
    move |error| {
        let text = |found: Result<&std::ffi::CStr, _>| {
            found.map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
        };
        let problem = format!("{} ({})", text(error.error_string()), text(error.error_name()));
        DeviceError::Call { call, problem }
    }
}

/// Starts the driver; how many GPUs it lists.
fn start_driver() -> Result<usize, DeviceError> {
    // SAFETY: only tries whether the library can be loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::Library {
            library: "libcuda.so.1",
            remedy: "it comes with the driver of an NVIDIA GPU; install that, and in a container \
                     pass the GPU through",
        });
    }
    match result::init() {
        Err(error) if error.0 == Code::CUDA_ERROR_NO_DEVICE => return Ok(0),
        other => other.map_err(call("cuInit"))?,
    }
    let mut version = 0;
    // SAFETY: writes one number to where it is told.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    status.result().map_err(call("cuDriverGetVersion"))?;
    if version < DRIVER {
        return Err(DeviceError::Version {
            what: "the driver",
            found: format!("{}.{} of CUDA", version / 1000, version % 1000 / 10),
            expected: "12.0",
            remedy: UPDATE,
        });
    }
    Ok(result::device::get_count().map_err(call("cuDeviceGetCount"))? as usize)
}

/// Checks that NVRTC and cuBLASLt can be loaded and are new enough; NVRTC's version.
pub(super) fn libraries() -> Result<(i32, i32), DeviceError> {
    let missing = |library| Err(DeviceError::Library { library, remedy: LIBRARIES });
    // SAFETY: only tries whether the library can be loaded.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return missing("libnvrtc.so");
    }
    // SAFETY: as above.
    if !unsafe { cudarc::cublaslt::sys::is_culib_present() } {
        return missing("libcublasLt.so");
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers to where it is told.
    let status = unsafe { cudarc::nvrtc::sys::nvrtcVersion(&mut major, &mut minor) };
    let problem = |error| DeviceError::Call { call: "nvrtcVersion", problem: format!("{error}") };
    status.result().map_err(problem)?;
    // SAFETY: takes nothing and returns a number.
    let blas = unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() };
    let old = |what, found: String| {
        Err(DeviceError::Version { what, found, expected: "12.0", remedy: LIBRARIES })
    };
    if major < 12 {
        return old("NVRTC", format!("{major}.{minor}"));
    }
    // 120103 is 12.1.3.
    if blas < 120_000 {
        return old("cuBLASLt", blas.to_string());
    }
    Ok((major, minor))
}

/// The context of a GPU that the kernels can run on, and its compute capability.
pub(super) fn open(index: usize) -> Result<(std::sync::Arc<CudaContext>, (i32, i32)), DeviceError> {
    let count = start_driver()?;
    if index >= count {
        return Err(DeviceError::Missing { index, count });
    }
    let context = CudaContext::new(index).map_err(call("cuDevicePrimaryCtxRetain"))?;
    let capability = context.compute_capability().map_err(call("cuDeviceGetAttribute"))?;
    if capability.0 < 8 {
        let name = context.name().map_err(call("cuDeviceGetName"))?;
        let (major, minor) = capability;
        return Err(DeviceError::Capability { name, major, minor });
    }
    Ok((context, capability))
}

/// Every GPU; one entry that says why, if none can be asked for.
pub(crate) fn devices() -> Vec<DeviceReport> {
    let none = |problem| {
        vec![DeviceReport {
            device: "cuda".into(),
            name: "NVIDIA GPUs".into(),
            memory: None,
            problem: Some(problem),
        }]
    };
    match start_driver() {
        Err(problem) => none(problem),
        Ok(0) => none(DeviceError::Missing { index: 0, count: 0 }),
        Ok(count) => (0..count).map(report).collect(),
    }
}

fn report(index: usize) -> DeviceReport {
    let name = result::device::get(index as i32).and_then(result::device::get_name);
    let (memory, problem) = match open(index) {
        Err(problem) => (None, Some(problem)),
        Ok((context, _)) => {
            let memory = context.mem_get_info().ok().map(|(free, all)| (free >> 20, all >> 20));
            (memory, libraries().err())
        }
    };
    DeviceReport {
        device: format!("cuda:{index}"),
        name: name.unwrap_or_else(|_| "unknown".into()),
        memory,
        problem,
    }
}
