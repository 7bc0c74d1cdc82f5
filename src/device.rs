//! The one place that knows CPU and CUDA: which device computes, how many threads, and how much memory there is.

use crate::config::{HardwareConfig, MasterWeights, RunConfig};
use crate::ops::{Place, gpu};
use anyhow::{Context, Result, bail};
use candle_core::Device;
use std::ffi::CString;
use std::fs;
use std::path::Path;

/// A device, and in words which it is and why.
#[derive(Debug, Clone)]
pub struct Choice {
    pub device: Device,
    pub reason: String,
}

/// The device that `hardware.device` names: `auto` is the first GPU that this build can use, else the CPU.
pub fn choose(config: &HardwareConfig) -> Result<Choice> {
    let cpu = |why: String| Choice { device: Device::Cpu, reason: format!("the CPU, {why}") };
    Ok(match config.device.as_str() {
        "cpu" => cpu("as `hardware.device` says".into()),
        "auto" if !candle_core::utils::cuda_is_available() => cpu("since this `mpo` was built without CUDA".into()),
        "auto" => match gpu::at(0) {
            Ok(device) => Choice { reason: format!("{}, the first GPU", gpu::name(&device)?), device },
            Err(error) => cpu(format!("since no GPU can be used: {error:#}")),
        },
        name => {
            let device = cuda(name)?;
            Choice { reason: format!("{}, as `hardware.device` = \"{name}\" says", gpu::name(&device)?), device }
        }
    })
}

/// The device of [`choose`].
pub fn select(config: &HardwareConfig) -> Result<Device> {
    Ok(choose(config)?.device)
}

/// `cpu`, or what a GPU calls itself.
pub fn name(device: &Device) -> Result<String> {
    if device.is_cpu() { Ok("cpu".into()) } else { gpu::name(device) }
}

fn cuda(name: &str) -> Result<Device> {
    let Some(index) = name.strip_prefix("cuda:").and_then(|index| index.parse().ok()) else {
        bail!("`hardware.device` is `{name}`; it can be `auto`, `cpu` or `cuda:N` (N = 0 for the first GPU)");
    };
    if !candle_core::utils::cuda_is_available() {
        bail!("`hardware.device` is `{name}`, but this `mpo` was built without CUDA: use `cpu` or `auto`");
    }
    gpu::at(index).with_context(|| format!("cannot use the GPU `{name}`"))
}

/// Where the run of `config` computes.
pub fn place(config: &RunConfig) -> Result<Place> {
    let place = Place::new(select(&config.hardware)?, config.model.dtype);
    Ok(match config.optimizer.master {
        MasterWeights::F32 => place,
        MasterWeights::Stochastic | MasterWeights::Kahan => place.with_bf16_weights(),
    })
}

/// The threads that everything computes on; all cores unless `hardware.threads` says otherwise. Results do not depend on their number.
pub fn thread_pool(config: &HardwareConfig) -> Result<rayon::ThreadPool> {
    let n_threads = match config.threads {
        Some(n_threads) => n_threads,
        None => std::thread::available_parallelism().map_or(1, |n| n.get()),
    };
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().with_context(|| format!("cannot start {n_threads} threads"))
}

/// Bytes as people read them.
pub fn gib(bytes: u64) -> String {
    let mib = bytes as f64 / (1024.0 * 1024.0);
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

/// Bytes that can still be allocated: the system's estimate, and what the container's limit leaves. `None` where neither is known.
pub fn available_memory() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| kib_of(&text, "MemAvailable:"));
    system.into_iter().chain(container_memory(Path::new("/sys/fs/cgroup"))).min()
}

/// What the limit of a control group (version 2) leaves; `None` where there is none.
fn container_memory(group: &Path) -> Option<u64> {
    let text = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
    // Cached files count as used: after a download that is most of it, and the system takes it back when it is needed.
    let stat = text("memory.stat").unwrap_or_default();
    let bytes_of = |key: &str| stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok()).unwrap_or(0);
    let cached = bytes_of("active_file ") + bytes_of("inactive_file ");
    Some(number("memory.max")?.saturating_sub(number("memory.current")?.saturating_sub(cached)))
}

/// Bytes that may still be written where `path` is, or would be made. `None` where the system does not say.
pub fn free_disk(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let name = CString::new(existing.as_os_str().as_encoded_bytes()).ok()?;
    // SAFETY: `statvfs` is plain old data for which all zeros is a value; the name ends with a zero byte and outlives the call.
    unsafe {
        let mut disk: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(name.as_ptr(), &mut disk) == 0).then(|| (disk.f_bavail as u64).saturating_mul(disk.f_frsize as u64))
    }
}

/// The memory that this process holds, in bytes; 0 where the system does not say.
pub fn rss_bytes() -> u64 {
    fs::read_to_string("/proc/self/status").ok().and_then(|text| kib_of(&text, "VmRSS:")).unwrap_or(0)
}

/// The most memory that this process has held at once, in bytes.
pub fn peak_rss_bytes() -> u64 {
    fs::read_to_string("/proc/self/status").ok().and_then(|text| kib_of(&text, "VmHWM:")).unwrap_or_else(peak_rss_of_rusage)
}

fn peak_rss_of_rusage() -> u64 {
    // SAFETY: `rusage` is plain old data for which all zeros is a value, and the pointer is valid for the call.
    let peak = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::getrusage(libc::RUSAGE_SELF, &mut usage) == 0 { usage.ru_maxrss } else { 0 }
    };
    // KiB on Linux, bytes on macOS.
    u64::try_from(peak).unwrap_or(0) * if cfg!(target_os = "macos") { 1 } else { 1024 }
}

fn kib_of(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(1024 * value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware(device: &str) -> HardwareConfig {
        HardwareConfig { device: device.into(), threads: None }
    }

    #[test]
    fn a_device_that_is_not_there_is_a_clear_error() {
        assert!(select(&hardware("cpu")).unwrap().is_cpu());
        let message = format!("{:#}", select(&hardware("gpu")).unwrap_err());
        assert!(message.contains("`auto`, `cpu` or `cuda:N`"), "{message}");
        if !candle_core::utils::cuda_is_available() {
            assert!(select(&hardware("auto")).unwrap().is_cpu());
            let message = format!("{:#}", select(&hardware("cuda:0")).unwrap_err());
            assert!(message.contains("built without CUDA"), "{message}");
        }
    }

    #[test]
    fn the_pool_has_the_threads_asked_for() {
        let pool = thread_pool(&HardwareConfig { threads: Some(3), ..hardware("cpu") }).unwrap();
        assert_eq!(pool.current_num_threads(), 3);
    }

    #[test]
    fn cached_files_do_not_count_against_a_containers_limit() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        assert_eq!(container_memory(group.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "900\n");
        assert_eq!(container_memory(group.path()), None, "no limit");
        write("memory.max", "1000\n");
        assert_eq!(container_memory(group.path()), Some(100));
        write("memory.stat", "anon 100\nfile 800\ninactive_file 500\nactive_file 250\nworkingset_refault_file 7\n");
        assert_eq!(container_memory(group.path()), Some(850));
    }

    #[test]
    fn free_disk_is_that_of_the_nearest_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free_disk(&dir.path().join("not/yet/made")).is_some_and(|bytes| bytes > 0));
        assert_eq!(free_disk(Path::new("")), None);
    }

    #[test]
    fn memory_of_this_process_is_known() {
        let before = peak_rss_bytes();
        let block = vec![1u8; 64 << 20];
        assert!(std::hint::black_box(&block).iter().map(|byte| u64::from(*byte)).sum::<u64>() > 0);
        assert!(peak_rss_bytes() >= before && peak_rss_bytes() > 64 << 20);
        assert!(peak_rss_of_rusage() > 64 << 20);
        if cfg!(target_os = "linux") {
            assert!(available_memory().is_some() && rss_bytes() > 64 << 20);
        }
    }
}
