//! Where G.pt runs: on the CPU, or on an NVIDIA GPU.

use std::fmt;
use std::str::FromStr;

/// What matrix products on a GPU are computed in. Everything else is in `f32`, and so are
/// parameters, gradients and the state of the optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Math {
    /// `f32` throughout, as on the CPU.
    F32,
    /// Factors rounded to TF32, which has ten binary digits after the point; sums in `f32`.
    #[default]
    Tf32,
    /// Factors, and the activations that they come from, kept in bf16, which has seven; sums
    /// in `f32`.
    Bf16,
}

impl Math {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Tf32, Self::Bf16];

    /// As it is written in a device's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}

/// What G.pt runs on.
///
/// Written `cpu`, `cuda` (the first GPU), `cuda:1` (the second), and with the
/// [`Math`] of matrix products after it: `cuda:0:bf16`, `cuda:bf16`.
///
/// # Examples
/// ```
/// use lopt::engine::{Device, Math};
///
/// assert_eq!("cpu".parse(), Ok(Device::Cpu));
/// assert_eq!("cuda".parse(), Ok(Device::Cuda { index: 0, math: Math::Tf32 }));
/// assert_eq!("cuda:1:bf16".parse(), Ok(Device::Cuda { index: 1, math: Math::Bf16 }));
/// assert!("gpu".parse::<Device>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU. Needs the feature `cuda`.
    Cuda {
        /// Its number, as the driver counts.
        index: usize,
        /// What matrix products are computed in.
        math: Math,
    },
}

impl Device {
    /// The GPU of a number, with [`Math::Tf32`].
    pub fn cuda(index: usize) -> Self {
        Self::Cuda { index, math: Math::default() }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda { index, math } => write!(f, "cuda:{index}:{}", math.name()),
        }
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown { found: text.to_owned() };
        let mut parts = text.split(':');
        match parts.next() {
            Some("cpu") if parts.next().is_none() => return Ok(Self::Cpu),
            Some("cuda") => {}
            _ => return Err(unknown()),
        }
        let (mut index, mut math) = (None, None);
        for part in parts {
            let named = Math::ALL.into_iter().find(|math| math.name() == part);
            match (named, part.parse::<usize>()) {
                (Some(found), _) if math.is_none() => math = Some(found),
                (None, Ok(found)) if index.is_none() && math.is_none() => index = Some(found),
                _ => return Err(unknown()),
            }
        }
        Ok(Self::Cuda { index: index.unwrap_or(0), math: math.unwrap_or_default() })
    }
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No device is called so.
    #[error("no device is called `{found}`, expected `cpu`, `cuda`, `cuda:1` or `cuda:0:bf16`")]
    Unknown {
        /// What was asked for.
        found: String,
    },
    /// This build knows no GPUs.
    #[error(
        "this lopt was built without CUDA: build it with `--features cuda`, which needs no CUDA \
         to be installed"
    )]
    NotBuilt,
    /// A library is not installed.
    #[error("the library {library} cannot be loaded: {remedy}")]
    Library {
        /// Its name.
        library: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A driver or library is too old.
    #[error("{what} is of version {found}, expected {expected} or later: {remedy}")]
    Version {
        /// What is too old.
        what: &'static str,
        /// Its version.
        found: String,
        /// The oldest that will do.
        expected: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// There is no GPU of this number.
    #[error("there is no device cuda:{index}: the driver lists {count}")]
    Missing {
        /// The number asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A GPU is older than the kernels allow.
    #[error(
        "{name} has compute capability {major}.{minor}, expected 8.0 or higher (Ampere or later)"
    )]
    Capability {
        /// The GPU.
        name: String,
        /// Its compute capability.
        major: i32,
        /// After the point.
        minor: i32,
    },
    /// The memory of a GPU does not suffice.
    #[error(
        "{needed} MiB of memory are needed on the device and {free} MiB are free: take a smaller \
         batch or model, bf16, or stop what else runs there"
    )]
    Memory {
        /// MiB needed.
        needed: usize,
        /// MiB free.
        free: usize,
    },
    /// The kernels were refused by the compiler.
    #[error("NVRTC cannot compile the kernels for {architecture}:\n{log}")]
    Compile {
        /// What for.
        architecture: String,
        /// What it said.
        log: String,
    },
    /// A call of the driver or of a library failed.
    #[error("{call} failed on the device: {problem}")]
    Call {
        /// The call, or the kernel.
        call: &'static str,
        /// What was said.
        problem: String,
    },
}

/// A device and whether it can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceReport {
    /// What `--device` takes, such as `cuda:0`.
    pub device: String,
    /// What it is.
    pub name: String,
    /// Free and whole memory in MiB, where it can be told.
    pub memory: Option<(usize, usize)>,
    /// Why it cannot be used; none if it can.
    pub problem: Option<DeviceError>,
}

/// Every device that there is, usable or not, the CPU first. Where no GPU can be asked for,
/// one entry `cuda` says why.
pub fn devices() -> Vec<DeviceReport> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let name = format!("{cores} {}", if cores == 1 { "core" } else { "cores" });
    let mut reports =
        vec![DeviceReport { device: "cpu".into(), name, memory: None, problem: None }];
    #[cfg(feature = "cuda")]
    reports.extend(super::cuda::devices());
    #[cfg(not(feature = "cuda"))]
    reports.push(DeviceReport {
        device: "cuda".into(),
        name: "NVIDIA GPUs".into(),
        memory: None,
        problem: Some(DeviceError::NotBuilt),
    });
    reports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for math in Math::ALL {
            for device in [Device::Cpu, Device::Cuda { index: 3, math }] {
                assert_eq!(device.to_string().parse(), Ok(device));
            }
        }
        assert_eq!("cuda:bf16".parse(), Ok(Device::Cuda { index: 0, math: Math::Bf16 }));
        assert_eq!("cuda:2".parse(), Ok(Device::cuda(2)));
        for bad in ["", "gpu", "cpu:1", "cuda:", "cuda:-1", "cuda:bf16:1", "cuda:1:2", "cuda:f16"] {
            let error = bad.parse::<Device>().unwrap_err();
            assert_eq!(error, DeviceError::Unknown { found: bad.into() });
        }
    }

    #[test]
    fn the_cpu_can_be_used_and_what_cannot_says_why() {
        let reports = devices();
        assert_eq!((reports[0].device.as_str(), &reports[0].problem), ("cpu", &None));
        assert!(reports.len() > 1);
        for report in &reports[1..] {
            assert!(report.device.starts_with("cuda"), "{report:?}");
            assert!(report.problem.as_ref().is_none_or(|p| !p.to_string().is_empty()));
        }
    }
}
