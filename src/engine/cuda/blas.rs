//! Products of matrices by cuBLASLt.
//!
//! cuBLASLt counts columns first. A matrix row by row is its transpose column by column, so
//! `out = a b` is asked for as `outᵀ = bᵀ aᵀ`, and a bias along rows of `outᵀ` is one along
//! columns of `out`.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue,
    cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cudaDataType as Type,
};

use super::backend::{Address, Product};
use crate::engine::DeviceError;

/// Bytes of memory that cuBLASLt may use: what NVIDIA recommends for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;

/// What decides how a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    sizes: [usize; 3],
    transposed: [bool; 2],
    narrow: bool,
    out_narrow: bool,
    tf32: bool,
    /// Whether something is added, and whether that is the output.
    add: Option<bool>,
    bias: bool,
    /// Bytes that a, b, out and the bias, and what is added are aligned to. cuBLASLt has no
    /// attribute for a bias; PyTorch gives its alignment as that of the output.
    alignments: [u32; 4],
}

impl Key {
    fn new(product: &Product) -> Self {
        let add = product.add.unwrap_or(product.out);
        let out = product.out | product.bias.unwrap_or(0);
        Self {
            sizes: [product.m, product.n, product.k],
            transposed: [product.a.transposed, product.b.transposed],
            narrow: product.narrow,
            out_narrow: product.out_narrow,
            tf32: product.tf32,
            add: product.add.map(|add| add == product.out),
            bias: product.bias.is_some(),
            alignments: [product.a.at, product.b.at, out, add].map(alignment),
        }
    }
}

/// The power of two that an address is a multiple of, at most 256.
fn alignment(at: Address) -> u32 {
    1 << at.trailing_zeros().min(8)
}

/// A product as cuBLASLt describes it.
struct Description {
    product: sys::cublasLtMatmulDesc_t,
    /// Of `bᵀ`, `aᵀ` and `outᵀ`; null until they are there.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    preference: sys::cublasLtMatmulPreference_t,
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: what is not null was created by cuBLASLt, and is destroyed once.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                let _ = result::destroy_matrix_layout(layout);
            }
            if !self.preference.is_null() {
                let _ = result::destroy_matmul_pref(self.preference);
            }
            let _ = result::destroy_matmul_desc(self.product);
        }
    }
}

/// How a product is computed.
struct Plan {
    description: Description,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// cuBLASLt, and how it computes what it was asked before.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Address,
    /// None where it cannot compute a product.
    plans: HashMap<Key, Option<Plan>>,
}

fn failed(call: &'static str) -> impl Fn(CublasError) -> DeviceError {
    move |error| DeviceError::Call { call, problem: error.to_string() }
}

impl Blas {
    /// With [`WORKSPACE`] bytes of memory. A context must be current.
    pub fn new(workspace: Address) -> Result<Self, DeviceError> {
        let handle = result::create_handle().map_err(failed("cublasLtCreate"))?;
        Ok(Self { handle, workspace, plans: HashMap::new() })
    }

    /// Multiplies matrices on a stream; whether cuBLASLt can.
    pub fn multiply(
        &mut self,
        product: &Product,
        stream: sys::cudaStream_t,
    ) -> Result<bool, DeviceError> {
        let key = Key::new(product);
        if !self.plans.contains_key(&key) {
            let plan = match plan(self.handle, &key, product.bias) {
                Ok(plan) => Some(plan),
                Err(CublasError(
                    sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED
                    | sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE,
                )) => None,
                Err(error) => return Err(failed("cublasLtMatmulAlgoGetHeuristic")(error)),
            };
            self.plans.insert(key, plan);
        }
        let Some(Some(plan)) = self.plans.get(&key) else { return Ok(false) };
        if let Some(bias) = product.bias {
            set_bias(plan.description.product, bias)
                .map_err(failed("cublasLtMatmulDescSetAttribute"))?;
        }
        let (one, add) = (1f32, f32::from(u8::from(product.add.is_some())));
        let pointer = |at: Address| at as *const c_void;
        let [left, right, out] = plan.description.layouts;
        // SAFETY: layouts and algorithm are those that were made for these sizes, types and
        // alignments; the engine keeps matrices of these sizes at these addresses; the factors of
        // the sum are read before the call returns.
        let status = unsafe {
            result::matmul(
                self.handle,
                plan.description.product,
                (&raw const one).cast(),
                (&raw const add).cast(),
                pointer(product.b.at),
                left,
                pointer(product.a.at),
                right,
                pointer(product.add.unwrap_or(product.out)),
                out,
                product.out as *mut c_void,
                out,
                &plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream,
            )
        };
        status.map_err(failed("cublasLtMatmul"))?;
        Ok(true)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: it was created by cuBLASLt and is destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn set<T>(
    description: sys::cublasLtMatmulDesc_t,
    attribute: Attribute,
    value: T,
) -> Result<(), CublasError> {
    // SAFETY: the description lives, and as many bytes are read as the value has.
    unsafe {
        result::set_matmul_desc_attribute(
            description,
            attribute,
            (&raw const value).cast(),
            size_of::<T>(),
        )
    }
}

fn set_bias(product: sys::cublasLtMatmulDesc_t, bias: Address) -> Result<(), CublasError> {
    set(product, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)
}

/// A layout of `rows` by `columns`, column by column.
fn layout(
    kind: Type,
    rows: usize,
    columns: usize,
) -> Result<sys::cublasLtMatrixLayout_t, CublasError> {
    result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64)
}

fn plan(
    handle: sys::cublasLtHandle_t,
    key: &Key,
    bias: Option<Address>,
) -> Result<Plan, CublasError> {
    let description = describe(key)?;
    if let Some(bias) = bias {
        // Nothing says that an algorithm can be asked for without it.
        set_bias(description.product, bias)?;
    }
    let (Description { product, preference, .. }, [left, right, out]) =
        (&description, description.layouts);
    // SAFETY: the handle and all of the description live.
    let found = unsafe {
        result::get_matmul_algo_heuristic(handle, *product, left, right, out, out, *preference)
    };
    Ok(Plan { algorithm: found?.algo, description })
}

fn describe(key: &Key) -> Result<Description, CublasError> {
    let kind = |narrow| if narrow { Type::CUDA_R_16BF } else { Type::CUDA_R_32F };
    let compute = match key.tf32 && !key.narrow {
        true => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
        false => Compute::CUBLAS_COMPUTE_32F,
    };
    let [m, n, k] = key.sizes;
    let [a_transposed, b_transposed] = key.transposed;
    let (factor, sum) = (kind(key.narrow), kind(key.out_narrow));
    let product = result::create_matmul_desc(compute, Type::CUDA_R_32F)?;
    let (layouts, preference) = ([std::ptr::null_mut(); 3], std::ptr::null_mut());
    let mut own = Description { product, layouts, preference };
    let shape = |transposed, rows, columns| match transposed {
        true => layout(factor, columns, rows),
        false => layout(factor, rows, columns),
    };
    own.layouts[0] = shape(b_transposed, n, k)?;
    own.layouts[1] = shape(a_transposed, k, m)?;
    own.layouts[2] = layout(sum, n, m)?;
    // CUBLAS_OP_N and CUBLAS_OP_T.
    let operation = |transposed: bool| i32::from(transposed);
    set(product, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, operation(b_transposed))?;
    set(product, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, operation(a_transposed))?;
    if key.bias {
        let epilogue = Epilogue::CUBLASLT_EPILOGUE_BIAS;
        set(product, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
        set(product, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, sum)?;
    }
    own.preference = result::create_matmul_pref()?;
    let prefer = |attribute, value: *const c_void, size| {
        // SAFETY: the preference lives, and as many bytes are read as the value has.
        unsafe { result::set_matmul_pref_attribute(own.preference, attribute, value, size) }
    };
    let workspace = WORKSPACE;
    let bytes = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    prefer(bytes, (&raw const workspace).cast(), size_of::<usize>())?;
    let [a, b, d, c] = key.alignments;
    for (attribute, alignment) in [
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
    ] {
        prefer(attribute, (&raw const alignment).cast(), size_of::<u32>())?;
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cuda::backend::Factor;

    #[test]
    fn alignments_are_powers_of_two() {
        let found = [0x7f00_0000_0000, 0x7f00_0000_0040, 0x7f00_0000_0004, 6].map(alignment);
        assert_eq!(found, [256, 64, 4, 2]);
    }

    #[test]
    fn the_alignment_of_a_bias_counts() {
        let factor = Factor { at: 0x1000, transposed: false };
        let product = Product {
            m: 8,
            n: 8,
            k: 8,
            a: factor,
            b: factor,
            narrow: true,
            out: 0x3000,
            out_narrow: true,
            add: None,
            bias: None,
            tf32: true,
        };
        let alignments = |bias| Key::new(&Product { bias, ..product }).alignments;
        assert_eq!(alignments(None), [256; 4]);
        assert_eq!(alignments(Some(0x4010)), [256, 256, 16, 256]);
        assert_eq!(alignments(Some(0x4002)), [256, 256, 2, 256]);
    }

    #[test]
    fn cublaslt_accepts_the_description_of_every_kind_of_product() {
        // SAFETY: only tries whether the library can be loaded.
        if !unsafe { sys::is_culib_present() } {
            return eprintln!("skipped: cuBLASLt cannot be loaded");
        }
        for kind in 0..64 {
            let [a, b, narrow, out_narrow, bias, add] =
                [0, 1, 2, 3, 4, 5].map(|i| kind >> i & 1 == 1);
            let product = Product {
                m: 24,
                n: 10,
                k: 7,
                a: Factor { at: 0x1000, transposed: a },
                b: Factor { at: 0x2004, transposed: b },
                narrow,
                out: 0x3000,
                out_narrow: narrow && out_narrow,
                add: add.then_some(0x4000),
                bias: bias.then_some(0x5004),
                tf32: true,
            };
            let described = describe(&Key::new(&product)).unwrap();
            assert!(described.layouts.iter().all(|layout| !layout.is_null()));
        }
    }
}
