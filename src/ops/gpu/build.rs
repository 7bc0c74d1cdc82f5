//! Compiles the GPU kernels: to PTX, with feature `cuda`. Without it there is nothing to do.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const KERNELS: &str = "src/ops/gpu/kernels";

fn main() {
    println!("cargo::rerun-if-changed={KERNELS}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile_ptx(&out.join("kernels.ptx"));
    }
}

/// PTX of compute capability 8.0: it runs on Ampere and on every later GPU.
fn compile_ptx(ptx: &std::path::Path) {
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let nvcc = env::var_os("CUDA_HOME").map_or_else(|| PathBuf::from("nvcc"), |home| PathBuf::from(home).join("bin/nvcc"));
    let mut command = Command::new(&nvcc);
    command.args(["-ptx", "-arch=compute_80", "-O3", "-std=c++17", "-o"]).arg(ptx).arg(format!("{KERNELS}/kernels.cu"));
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("`{}` could not compile the GPU kernels ({status}): its messages are above", nvcc.display()),
        Err(error) => panic!(
            "cannot start `{}` ({error}): feature `cuda` needs NVIDIA's compiler; put nvcc into PATH or its toolkit into CUDA_HOME, or run \
             .cuda/setup (see the README)",
            nvcc.display()
        ),
    }
}
