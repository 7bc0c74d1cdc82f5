//! The emulated GPU: the kernels of `kernels/`, compiled for the CPU and loaded by the first test that asks for them.
//!
//! They are compiled by the machine's C++ compiler (`CXX`, else `c++`) into a library beside the running test, whose name is a digest of the
//! sources: it is made once, by whichever process needs it first. A program that never calls [`on_emulated_gpu`] compiles and loads nothing.

use super::{Argument, Kernel};
use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::ffi::{CStr, CString, OsString, c_char, c_void};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The functions of `kernels/emulated.cpp`.
struct Emulator {
    /// Lets the threads of the launches that follow take their turns the other way round.
    turn_round: unsafe extern "C" fn(),
    /// Returns 0, or 1 where there is no kernel of that name.
    emulate: Launch,
}

type Launch =
    unsafe extern "C" fn(name: *const c_char, blocks: *const u32, threads: u32, shared_bytes: u32, arguments: *mut *mut c_void) -> i32;

static EMULATOR: OnceLock<Result<Option<Emulator>, String>> = OnceLock::new();

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
}

/// True if this thread's CPU tensors are taken for those of a GPU.
pub(super) fn is_on() -> bool {
    ON.get()
}

/// Runs `work` with this thread's CPU tensors on the emulated GPU. From call to call its threads take turns the other way round, so that work which
/// gives the same twice does not depend on their order. `None` where the machine has no C++ compiler.
///
/// # Errors
///
/// The kernels do not compile, or are not loaded.
pub fn on_emulated_gpu<R>(work: impl FnOnce() -> R) -> Result<Option<R>> {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ON.set(self.0);
        }
    }
    let loaded = EMULATOR.get_or_init(|| load().map_err(|error| format!("{error:#}")));
    let Some(emulator) = loaded.as_ref().map_err(|error| anyhow!("the GPU cannot be emulated: {error}"))? else { return Ok(None) };
    let _restore = Restore(ON.replace(true));
    // SAFETY: it changes nothing but a flag of this thread.
    unsafe { (emulator.turn_round)() };
    Ok(Some(work()))
}

/// Compiles the kernels, unless that was done before, and loads them. `None` without a compiler.
fn load() -> Result<Option<Emulator>> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/gpu/kernels");
    let beside = std::env::current_exe()?.parent().map(PathBuf::from).context("the running program has no folder")?;
    let library = beside.join(format!("mpo-emulator-{}.so", digest_of(&sources)?));
    if !library.exists() && !compile(&sources.join("emulated.cpp"), &library)? {
        return Ok(None);
    }
    open(&library).map(Some)
}

/// The digest of all sources, in the order of their names.
fn digest_of(sources: &Path) -> Result<String> {
    let entries = std::fs::read_dir(sources).with_context(|| format!("the kernels' sources, `{}`", sources.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    let mut digest = Sha256::new();
    for path in paths {
        digest.update(std::fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?);
    }
    Ok(digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// False where there is no compiler. Processes that compile at once each make a whole library, and the last one stays.
fn compile(source: &Path, library: &Path) -> Result<bool> {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| OsString::from("c++"));
    let unfinished = library.with_extension(format!("{}.unfinished", std::process::id()));
    let output = Command::new(&compiler).args(["-std=c++17", "-O2", "-shared", "-fPIC", "-o"]).args([&unfinished, source]).output();
    match output {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("cannot start `{}`", compiler.display())),
        Ok(output) if output.status.success() => {}
        Ok(output) => bail!("`{}` cannot compile the kernels: {}", compiler.display(), String::from_utf8_lossy(&output.stderr)),
    }
    std::fs::rename(&unfinished, library).with_context(|| format!("cannot write `{}`", library.display()))?;
    Ok(true)
}

fn open(library: &Path) -> Result<Emulator> {
    let path = CString::new(library.as_os_str().as_bytes())?;
    // SAFETY: the path ends in a zero byte. What runs on loading are the constructors of the kernels' table. The library is never closed.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    ensure!(!handle.is_null(), "cannot load `{}`: {}", library.display(), loader_error());
    let function = |name: &CStr| {
        // SAFETY: the handle is that of a library, and the name ends in a zero byte.
        let function = unsafe { libc::dlsym(handle, name.as_ptr()) };
        ensure!(!function.is_null(), "`{}` lacks `{}`", library.display(), name.to_string_lossy());
        Ok(function)
    };
    let (turn_round, emulate) = (function(c"mpo_turn_round")?, function(c"mpo_emulate")?);
    // SAFETY: these are the types of the two functions in `emulated.cpp`, of which the library's name is a digest.
    unsafe {
        Ok(Emulator {
            turn_round: std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(turn_round),
            emulate: std::mem::transmute::<*mut c_void, Launch>(emulate),
        })
    }
}

/// What the loader says of its last failure.
fn loader_error() -> String {
    // SAFETY: it returns a null pointer, or a text that stays until this thread's next call of the loader.
    unsafe {
        let error = libc::dlerror();
        if error.is_null() { "no reason is given".into() } else { CStr::from_ptr(error).to_string_lossy().into_owned() }
    }
}

/// Where an argument's bytes are.
fn pointer(argument: &Argument) -> *mut c_void {
    match argument {
        Argument::Address(value) | Argument::Long(value) => std::ptr::from_ref(value) as *mut c_void,
        Argument::Integer(value) => std::ptr::from_ref(value) as *mut c_void,
        Argument::Float(value) => std::ptr::from_ref(value) as *mut c_void,
    }
}

/// Runs a kernel's blocks, one after the other.
///
/// # Errors
///
/// Nobody emulates a GPU here, or there is no kernel of that name.
pub(super) fn launch(kernel: &Kernel, blocks: [usize; 3], threads: usize) -> Result<()> {
    let emulator = EMULATOR.get().and_then(|loaded| loaded.as_ref().ok()?.as_ref()).filter(|_| is_on());
    let emulator = emulator.with_context(|| format!("`{}` is a kernel of a GPU, and its tensors are on the CPU", kernel.name))?;
    let name = CString::new(kernel.name.as_str()).context("a kernel's name")?;
    let blocks = blocks.map(|n| n as u32);
    let mut arguments: Vec<*mut c_void> = kernel.arguments.iter().map(pointer).collect();
    // SAFETY: the arguments outlive the call and are of the types that the kernel declares, which the tests of every op show; the addresses among
    // them are those of tensors that the caller holds.
    let missing =
        unsafe { (emulator.emulate)(name.as_ptr(), blocks.as_ptr(), threads as u32, kernel.shared_bytes as u32, arguments.as_mut_ptr()) };
    ensure!(missing == 0, "there is no kernel `{}`", kernel.name);
    Ok(())
}
