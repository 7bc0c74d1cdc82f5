//! The CUDA driver: kernels from the PTX that the build made, products by cuBLAS.

mod host_calls;
mod pinned;

use super::multiply::row_stride;
use super::{Kernel, Operand};
use crate::ops::gemm::Write;
use anyhow::{Context, Result, bail};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cublasPointerMode_t, cudaDataType_t,
};
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, DevicePtr, LaunchConfig, PushKernelArg, sys as driver};
use candle_core::cuda_backend::{CudaDevice, CudaStorage, CudaStorageSlice};
use candle_core::{DType, Storage, Tensor};
pub(super) use host_calls::HostCalls;
pub(super) use pinned::upload;
use std::ffi::c_void;

/// For compute capability 8.0, which the driver translates for whatever GPU is there: Ampere and later.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Bytes of shared memory that a block has if its kernel asks for no more.
const SHARED_WITHOUT_ASKING: usize = 48 * 1024;

/// Memory that is given back stays in the driver's pool, where the next request of the stream finds it without a system call; and since all work goes
/// to one stream, whose order frees and uses memory, no events are recorded.
pub(super) fn prepare(device: &CudaDevice) -> Result<()> {
    // SAFETY: every tensor is made, used and freed on the one stream that the device has.
    unsafe { device.disable_event_tracking() };
    let mut keep_all = u64::MAX;
    let attribute = driver::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the attribute's value is 64 bits wide.
    unsafe { driver::cuMemPoolSetAttribute(pool(device)?, attribute, std::ptr::from_mut(&mut keep_all).cast()).result()? };
    Ok(())
}

/// The pool that all tensors come from.
fn pool(device: &CudaDevice) -> Result<driver::CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: the pool is the device's own and lives as long as that.
    unsafe { driver::cuDeviceGetDefaultMemPool(&mut pool, device.cuda_stream().context().cu_device()).result()? };
    Ok(pool)
}

/// A number of bytes that the pool keeps of itself.
fn pool_bytes(device: &CudaDevice, attribute: driver::CUmemPool_attribute) -> Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the attributes of this kind are 64 bits wide.
    unsafe { driver::cuMemPoolGetAttribute(pool(device)?, attribute, std::ptr::from_mut(&mut bytes).cast()).result()? };
    Ok(bytes)
}

pub(super) fn peak_bytes(device: &CudaDevice) -> Option<u64> {
    let attribute = driver::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    let peak = pool_bytes(device, attribute).ok()?;
    let mut from_now_on = 0u64;
    // SAFETY: the attribute's value is 64 bits wide; 0 is how this mark is set back.
    let reset = unsafe { driver::cuMemPoolSetAttribute(pool(device).ok()?, attribute, std::ptr::from_mut(&mut from_now_on).cast()) };
    reset.result().ok().map(|()| peak)
}

/// This moment of the device's one stream.
pub(super) fn mark(device: &CudaDevice) -> Result<CudaEvent> {
    Ok(device.cuda_stream().record_event(Some(driver::CUevent_flags::CU_EVENT_DEFAULT))?)
}

pub(super) fn free_bytes(device: &CudaDevice) -> Option<u64> {
    let (free, _) = device.cuda_stream().context().mem_get_info().ok()?;
    let of_pool = |attribute| pool_bytes(device, attribute).ok();
    let reserved = of_pool(driver::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let used = of_pool(driver::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    Some(free as u64 + reserved.saturating_sub(used))
}

pub(super) fn name(device: &CudaDevice) -> Result<String> {
    Ok(device.cuda_stream().context().name()?)
}

/// Where value `start` lies.
pub(super) fn address(storage: &CudaStorage, start: usize) -> Result<u64> {
    let stream = storage.device().cuda_stream();
    let (address, n_bytes) = match &storage.slice {
        CudaStorageSlice::F32(values) => (values.device_ptr(&stream).0, 4),
        CudaStorageSlice::BF16(values) => (values.device_ptr(&stream).0, 2),
        CudaStorageSlice::U32(values) => (values.device_ptr(&stream).0, 4),
        CudaStorageSlice::I64(values) => (values.device_ptr(&stream).0, 8),
        CudaStorageSlice::F64(values) => (values.device_ptr(&stream).0, 8),
        CudaStorageSlice::U8(values) => (values.device_ptr(&stream).0, 1),
        _ => bail!("no kernel takes {:?}", storage.dtype()),
    };
    Ok(address + (start * n_bytes) as u64)
}

pub(super) fn launch(device: &CudaDevice, kernel: &Kernel, blocks: [usize; 3], threads: usize) -> Result<()> {
    let function = device.get_or_load_custom_func(&kernel.name, "mpo", PTX).with_context(|| format!("loading `{}`", kernel.name))?;
    if kernel.shared_bytes > SHARED_WITHOUT_ASKING {
        function
            .set_attribute(driver::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.shared_bytes as i32)
            .with_context(|| {
            format!("`{}` needs {} bytes of shared memory a block, more than this GPU has", kernel.name, kernel.shared_bytes)
        })?;
    }
    let mut launch = function.builder();
    for argument in &kernel.arguments {
        match argument {
            super::Argument::Address(value) | super::Argument::Long(value) => launch.arg(value),
            super::Argument::Integer(value) => launch.arg(value),
            super::Argument::Float(value) => launch.arg(value),
        };
    }
    let [x, y, z] = blocks.map(|n| n as u32);
    let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (threads as u32, 1, 1), shared_mem_bytes: kernel.shared_bytes as u32 };
    // SAFETY: number and types of the arguments are those that the kernel declares (the emulator's tests run the same calls), and their addresses
    // belong to tensors of this device that the caller holds; memory is given back in the order of the stream.
    unsafe { launch.launch(config) }.with_context(|| format!("starting `{}` on {blocks:?} blocks", kernel.name))?;
    Ok(())
}

fn type_of(tensor: &Tensor) -> Result<cudaDataType_t> {
    match tensor.dtype() {
        DType::F32 => Ok(cudaDataType_t::CUDA_R_32F),
        DType::BF16 => Ok(cudaDataType_t::CUDA_R_16BF),
        other => bail!("no product of {other:?}"),
    }
}

/// Address, type and row stride.
fn matrix(tensor: &Tensor) -> Result<(*mut c_void, cudaDataType_t, i32)> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(values) = &*storage else { bail!("a product on the GPU of a tensor that is not there") };
    let address = address(values, layout.start_offset())?;
    Ok((address as *mut c_void, type_of(tensor)?, i32::try_from(row_stride(tensor)?).context("a matrix too wide for cuBLAS")?))
}

/// cuBLAS stores columns one behind the other, so it is told `outᵀ = bᵀ aᵀ`.
pub(super) fn multiply(device: &CudaDevice, out: &Tensor, write: Write, factor: f32, a: Operand, b: Operand) -> Result<()> {
    let (m, n) = out.dims2()?;
    let inner = a.dims()?.1;
    let [m, n, inner] = [m, n, inner].map(|size| i32::try_from(size).context("a product too large for cuBLAS"));
    let (m, n, inner) = (m?, n?, inner?);
    let ((a_values, a_type, a_stride), (b_values, b_type, b_stride)) = (matrix(a.tensor)?, matrix(b.tensor)?);
    let (out_values, out_type, out_stride) = matrix(out)?;
    let beta = if write == Write::Add { 1.0f32 } else { 0.0 };
    let operation = |operand: &Operand| if operand.transposed { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N };
    // Any thread may come here, and cuBLAS works in the context that is its thread's.
    device.cuda_stream().context().bind_to_thread()?;
    let handle = device.cublas_handle();
    // SAFETY: the three matrices lie on the device in the strides told, which `row_stride` read from their layouts; the factors are on the host.
    unsafe {
        sys::cublasSetPointerMode_v2(*handle.handle(), cublasPointerMode_t::CUBLAS_POINTER_MODE_HOST).result()?;
        result::gemm_ex(
            *handle.handle(),
            operation(&b),
            operation(&a),
            n,
            m,
            inner,
            std::ptr::from_ref(&factor).cast(),
            b_values,
            b_type,
            b_stride,
            a_values,
            a_type,
            a_stride,
            std::ptr::from_ref(&beta).cast(),
            out_values,
            out_type,
            out_stride,
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .with_context(|| format!("cuBLAS: {m} x {inner} by {inner} x {n}"))
}
