//! A GPU, through the CUDA driver.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{c_void, CString};
use std::sync::Arc;

use cudarc::driver::sys::cudaError_enum as Code;
use cudarc::driver::{result, sys, CudaContext, CudaGraph, CudaStream, DriverError};

use super::backend::{staged_len, Address, Argument, Backend, Product};
use super::blas::{Blas, WORKSPACE};
use super::kernels::KERNELS;
use super::probe::call;
use super::{compile, probe};
use crate::engine::DeviceError;

/// Bytes that can be posted at once.
const POST: usize = 256;

/// Memory of the host that the device can read and write on its own.
struct Pinned {
    at: *mut u8,
    bytes: usize,
}

impl Pinned {
    fn new(bytes: usize) -> Result<Self, DeviceError> {
        // SAFETY: nothing is read before it is written.
        let at = unsafe { result::malloc_host(bytes, 0) }.map_err(call("cuMemHostAlloc"))?;
        Ok(Self { at: at.cast(), bytes })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it was allocated by this call's counterpart and is freed once.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }
}

/// A point in the work of a stream.
struct Event(sys::CUevent);

impl Event {
    fn new() -> Result<Self, DeviceError> {
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        Ok(Self(event.map_err(call("cuEventCreate"))?))
    }

    /// After all work that the stream was given.
    fn record(&self, stream: &CudaStream) -> Result<(), DeviceError> {
        // SAFETY: event and stream live.
        unsafe { result::event::record(self.0, stream.cu_stream()) }.map_err(call("cuEventRecord"))
    }

    /// The stream's further work waits for this point.
    fn holds(&self, stream: &CudaStream) -> Result<(), DeviceError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream live.
        unsafe { result::stream::wait_event(stream.cu_stream(), self.0, flags) }
            .map_err(call("cuStreamWaitEvent"))
    }

    /// Waits for this point; not at all if it was never recorded.
    fn wait(&self) -> Result<(), DeviceError> {
        // SAFETY: the event lives.
        unsafe { result::event::synchronize(self.0) }.map_err(call("cuEventSynchronize"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it was created by this call's counterpart and is destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// One of the two places that parts are staged in.
struct Place {
    host: Option<Pinned>,
    device: Address,
    /// When the parts are on the device.
    copied: Event,
    /// When they have been read.
    released: Event,
}

impl Place {
    fn new() -> Result<Self, DeviceError> {
        Ok(Self { host: None, device: 0, copied: Event::new()?, released: Event::new()? })
    }
}

/// One of the two places that are posted to.
struct Post {
    host: Pinned,
    arrived: Event,
}

impl Post {
    fn new() -> Result<Self, DeviceError> {
        Ok(Self { host: Pinned::new(POST)?, arrived: Event::new()? })
    }
}

/// A GPU with the kernels loaded. Fields are dropped in this order: what uses the context first.
pub(crate) struct Gpu {
    blas: Blas,
    places: [Place; 2],
    posts: [Post; 2],
    functions: HashMap<&'static str, sys::CUfunction>,
    module: sys::CUmodule,
    /// Memory to free in the end.
    allocated: Vec<Address>,
    recording: bool,
    stream: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

// SAFETY: contexts, streams, events and memory of the driver belong to no thread; every method
// makes the context current in its own thread first, and takes the GPU mutably, so that there is
// one at a time.
unsafe impl Send for Gpu {}

/// Work that a GPU does again.
pub(crate) struct Graph(CudaGraph);

// SAFETY: a graph belongs to no thread; it is launched only together with its GPU, which one
// thread has at a time.
unsafe impl Send for Graph {}

impl Gpu {
    /// The GPU of this number.
    ///
    /// # Errors
    /// If driver, GPU or a library is missing or too old, or the kernels cannot be compiled.
    pub fn open(index: usize) -> Result<Self, DeviceError> {
        let (context, capability) = probe::open(index)?;
        let nvrtc = probe::libraries()?;
        let code = compile::kernels(capability, nvrtc)?;
        context.bind_to_thread().map_err(call("cuCtxSetCurrent"))?;
        // SAFETY: the code is whole and lives during the call.
        let module = unsafe { result::module::load_data(code.as_ptr().cast()) };
        let module = module.map_err(call("cuModuleLoadData"))?;
        let mut functions = HashMap::new();
        for name in KERNELS {
            let text = CString::new(name).unwrap_or_default();
            // SAFETY: the module was loaded above.
            let function = unsafe { result::module::get_function(module, text) };
            functions.insert(name, function.map_err(call("cuModuleGetFunction"))?);
        }
        let stream = || context.new_stream().map_err(call("cuStreamCreate"));
        let (stream, copies) = (stream()?, stream()?);
        let mut allocated = Vec::new();
        let workspace = allocate(WORKSPACE, &mut allocated)?;
        Ok(Self {
            blas: Blas::new(workspace)?,
            places: [Place::new()?, Place::new()?],
            posts: [Post::new()?, Post::new()?],
            functions,
            module,
            allocated,
            recording: false,
            stream,
            copies,
            context,
        })
    }

    fn bind(&self) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(call("cuCtxSetCurrent"))
    }

    /// What cannot be recorded is refused: it would be done once, or end the recording.
    fn bind_to_act(&self, call: &'static str) -> Result<(), DeviceError> {
        if self.recording {
            let problem = "it cannot be recorded".to_owned();
            return Err(DeviceError::Call { call, problem });
        }
        self.bind()
    }
}

/// Memory with anything in it.
fn allocate(bytes: usize, allocated: &mut Vec<Address>) -> Result<Address, DeviceError> {
    // SAFETY: nothing is read before it is written.
    match unsafe { result::malloc_sync(bytes) } {
        Ok(at) => {
            allocated.push(at);
            Ok(at)
        }
        Err(DriverError(Code::CUDA_ERROR_OUT_OF_MEMORY)) => {
            let free = result::mem_get_info().map_or(0, |(free, _)| free);
            Err(DeviceError::Memory { needed: bytes.div_ceil(1 << 20), free: free >> 20 })
        }
        Err(error) => Err(call("cuMemAlloc")(error)),
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let _ = self.bind().and_then(|()| {
            // Nothing may be freed that work under way still reads.
            self.stream.synchronize().map_err(call("cuStreamSynchronize"))?;
            self.copies.synchronize().map_err(call("cuStreamSynchronize"))
        });
        for &at in &self.allocated {
            // SAFETY: it was allocated and not yet freed.
            let _ = unsafe { result::free_sync(at) };
        }
        // SAFETY: no work under way runs its kernels.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

impl Backend for Gpu {
    type Recording = Graph;

    fn allocate(&mut self, bytes: usize) -> Result<Address, DeviceError> {
        self.bind_to_act("cuMemAlloc")?;
        let at = allocate(bytes, &mut self.allocated)?;
        self.zero(at, bytes)?;
        Ok(at)
    }

    fn free(&mut self, at: Address) -> Result<(), DeviceError> {
        self.bind_to_act("cuMemFree")?;
        self.stream.synchronize().map_err(call("cuStreamSynchronize"))?;
        self.allocated.retain(|&other| other != at);
        // SAFETY: it was allocated, is forgotten with this, and no work under way reads it.
        unsafe { result::free_sync(at) }.map_err(call("cuMemFree"))
    }

    fn free_memory(&mut self) -> Result<usize, DeviceError> {
        self.bind()?;
        Ok(result::mem_get_info().map_err(call("cuMemGetInfo"))?.0)
    }

    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.bind_to_act("cuMemcpyHtoD")?;
        // SAFETY: the engine keeps as many bytes there. The host's memory is not pinned, so the
        // driver has copied it when the call returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }
            .map_err(call("cuMemcpyHtoD"))
    }

    fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.bind_to_act("cuMemcpyDtoH")?;
        // SAFETY: the engine keeps as many bytes there, and the copy has ended when this returns.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream.cu_stream()) }
            .map_err(call("cuMemcpyDtoH"))?;
        self.stream.synchronize().map_err(call("cuStreamSynchronize"))
    }

    fn zero(&mut self, at: Address, bytes: usize) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: the engine keeps as many bytes there.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream.cu_stream()) }
            .map_err(call("cuMemsetD8"))
    }

    fn launch(
        &mut self,
        kernel: &'static str,
        blocks: [usize; 2],
        threads: usize,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        self.bind()?;
        let refused = |problem: String| Err(DeviceError::Call { call: kernel, problem });
        let Some(&function) = self.functions.get(kernel) else {
            return refused("there is no such kernel".into());
        };
        let (most_x, most_y) = (i32::MAX as usize, 65_535);
        if blocks[0] > most_x || blocks[1] > most_y {
            return refused(format!("{blocks:?} blocks, expected at most {most_x} by {most_y}"));
        }
        let mut pointers: Vec<*mut c_void> =
            arguments.iter().map(|value| (&raw const *value) as *mut c_void).collect();
        let grid = (blocks[0] as u32, blocks[1] as u32, 1);
        // SAFETY: the function is of the loaded module. The arguments are those of the kernel:
        // tests run every launch of the engine against the same source. They are read before the
        // call returns, and what they point to is the engine's, which outlives the work.
        unsafe {
            result::launch_kernel(
                function,
                grid,
                (threads as u32, 1, 1),
                0,
                self.stream.cu_stream(),
                &mut pointers,
            )
        }
        .map_err(call(kernel))
    }

    fn multiply(&mut self, product: &Product) -> Result<(), DeviceError> {
        self.bind()?;
        let stream = self.stream.cu_stream();
        if self.blas.multiply(product, stream.cast())? {
            return Ok(());
        }
        let (kernel, blocks, arguments) = product.kernel();
        self.launch(kernel, blocks, 256, &arguments)
    }

    fn stage(&mut self, place: usize, parts: &[&[u8]]) -> Result<Address, DeviceError> {
        self.bind_to_act("stage")?;
        let bytes = parts.iter().map(|part| staged_len(part.len())).sum::<usize>().max(1);
        let own = &mut self.places[place];
        own.copied.wait()?;
        if own.host.as_ref().is_none_or(|host| host.bytes < bytes) {
            own.released.wait()?;
            own.host = None;
            if own.device != 0 {
                self.allocated.retain(|&other| other != own.device);
                // SAFETY: it was allocated, is forgotten with this, and has been read.
                unsafe { result::free_sync(own.device) }.map_err(call("cuMemFree"))?;
                own.device = 0;
            }
            // In this order: where the second fails, there is no host's memory to say that there
            // is the device's.
            own.device = allocate(bytes, &mut self.allocated)?;
            own.host = Some(Pinned::new(bytes)?);
        }
        let Some(host) = &own.host else { return Ok(0) };
        // SAFETY: as many bytes were allocated, nobody else has them, and the copy that read
        // them before has ended.
        let room = unsafe { std::slice::from_raw_parts_mut(host.at, host.bytes) };
        let mut start = 0;
        for part in parts {
            room[start..start + part.len()].copy_from_slice(part);
            start += staged_len(part.len());
        }
        own.released.holds(&self.copies)?;
        // SAFETY: as many bytes were allocated there, and the host's stay as they are until
        // `copied`.
        unsafe { result::memcpy_htod_async(own.device, &room[..bytes], self.copies.cu_stream()) }
            .map_err(call("cuMemcpyHtoD"))?;
        own.copied.record(&self.copies)?;
        Ok(own.device)
    }

    fn await_staged(&mut self, place: usize) -> Result<(), DeviceError> {
        self.bind()?;
        self.places[place].copied.holds(&self.stream)
    }

    fn release(&mut self, place: usize) -> Result<(), DeviceError> {
        self.bind()?;
        self.places[place].released.record(&self.stream)
    }

    fn post(&mut self, place: usize, from: Address, bytes: usize) -> Result<(), DeviceError> {
        self.bind_to_act("cuMemcpyDtoH")?;
        let post = &mut self.posts[place];
        post.arrived.wait()?;
        // SAFETY: as many bytes were allocated, nobody else has them, and the copy that wrote
        // them before has ended.
        let room = unsafe { std::slice::from_raw_parts_mut(post.host.at, post.host.bytes) };
        // SAFETY: the engine keeps as many bytes there; what is written is not looked at before
        // `arrived`.
        unsafe { result::memcpy_dtoh_async(&mut room[..bytes], from, self.stream.cu_stream()) }
            .map_err(call("cuMemcpyDtoH"))?;
        post.arrived.record(&self.stream)
    }

    fn collect(&mut self, place: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.bind()?;
        let post = &self.posts[place];
        post.arrived.wait()?;
        // SAFETY: as many bytes were allocated, and the copy that wrote them has ended.
        let room = unsafe { std::slice::from_raw_parts(post.host.at, post.host.bytes) };
        bytes.copy_from_slice(&room[..bytes.len()]);
        Ok(())
    }

    fn begin_recording(&mut self) -> Result<(), DeviceError> {
        self.bind_to_act("cuStreamBeginCapture")?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(call("cuStreamBeginCapture"))?;
        self.recording = true;
        Ok(())
    }

    fn end_recording(&mut self) -> Result<Graph, DeviceError> {
        self.bind()?;
        self.recording = false;
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        let graph = graph.map_err(call("cuStreamEndCapture"))?;
        let empty =
            || DeviceError::Call { call: "cuStreamEndCapture", problem: "it is empty".into() };
        Ok(Graph(graph.ok_or_else(empty)?))
    }

    fn replay(&mut self, graph: &Graph) -> Result<(), DeviceError> {
        self.bind_to_act("cuGraphLaunch")?;
        graph.0.launch().map_err(call("cuGraphLaunch"))
    }
}
