//! The emulated GPU: the kernels of `kernels/`, compiled for the CPU by the build script.

use super::{Argument, Kernel};
use anyhow::{Context, Result, ensure};
use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};

unsafe extern "C" {
    /// Lets the threads of the launches that follow take their turns the other way round.
    fn mpo_turn_round();
    /// 0, or 1 where there is no kernel of that name.
    fn mpo_emulate(name: *const c_char, blocks: *const u32, threads: u32, shared_bytes: u32, arguments: *mut *mut c_void) -> i32;
}

/// Where an argument's bytes are.
fn pointer(argument: &Argument) -> *mut c_void {
    match argument {
        Argument::Address(value) | Argument::Long(value) => std::ptr::from_ref(value) as *mut c_void,
        Argument::Integer(value) => std::ptr::from_ref(value) as *mut c_void,
        Argument::Float(value) => std::ptr::from_ref(value) as *mut c_void,
    }
}

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn is_on() -> bool {
    ON.get()
}

/// Runs `work` with this thread's CPU tensors on the emulated GPU. From call to call its threads take turns the other way round, so that work which
/// gives the same twice does not depend on their order.
pub fn on_emulated_gpu<R>(work: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ON.set(self.0);
        }
    }
    let _restore = Restore(ON.replace(true));
    // SAFETY: it changes nothing but a flag of this thread.
    unsafe { mpo_turn_round() };
    work()
}

pub(super) fn launch(kernel: &Kernel, blocks: [usize; 3], threads: usize) -> Result<()> {
    let name = CString::new(kernel.name.as_str()).context("a kernel's name")?;
    let blocks = blocks.map(|n| n as u32);
    let mut arguments: Vec<*mut c_void> = kernel.arguments.iter().map(pointer).collect();
    // SAFETY: the arguments outlive the call and are of the types that the kernel declares, which the tests of every op show; the addresses among
    // them are those of tensors that the caller holds.
    let missing =
        unsafe { mpo_emulate(name.as_ptr(), blocks.as_ptr(), threads as u32, kernel.shared_bytes as u32, arguments.as_mut_ptr()) };
    ensure!(missing == 0, "there is no kernel `{}`", kernel.name);
    Ok(())
}
