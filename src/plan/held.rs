//! What a run holds of every memory that it uses, against what is free there: of the host's, and of a GPU's where one computes.

use super::gpu::GpuMemory;
use super::memory::Memory;
use serde::Serialize;
use std::fmt;

/// Bytes by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Held {
    #[serde(rename = "memory")]
    pub host: Memory,
    /// Where one computes; then most of the host's are none.
    #[serde(rename = "gpu_memory", skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuMemory>,
}

/// Bytes that the process may come to have, what it has already among them; `None` where that is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Available {
    pub host: Option<u64>,
    /// Without a meaning where no GPU computes.
    pub gpu: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Gpu,
    Host,
}

impl Store {
    /// A run fits comfortably that leaves the rest to others: on the host to the cache of the files that it reads and writes, for one; on a GPU to
    /// the gaps between the pieces of the driver's pool.
    pub fn comfortable_share(self) -> f64 {
        match self {
            Self::Host => 0.8,
            Self::Gpu => 0.95,
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Gpu { "GPU" } else { "host" })
    }
}

/// One memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub store: Store,
    pub needed: u64,
    pub available: Option<u64>,
}

impl Share {
    /// Whether it fits; `None` where nothing is known of what is free.
    pub fn fits(&self) -> Option<bool> {
        self.available.map(|available| self.needed <= available)
    }

    pub fn is_comfortable(&self) -> Option<bool> {
        self.available.map(|available| self.needed as f64 <= self.store.comfortable_share() * available as f64)
    }
}

impl Held {
    /// Every memory that is used, that of the device which computes first.
    pub fn shares(&self, available: &Available) -> Vec<Share> {
        let host = Share { store: Store::Host, needed: self.host.total(), available: available.host };
        let gpu = self.gpu.map(|gpu| Share { store: Store::Gpu, needed: gpu.total(), available: available.gpu });
        gpu.into_iter().chain([host]).collect()
    }

    /// Of the memory of the device that computes.
    pub fn computing(&self, available: &Available) -> Share {
        let (store, needed, available) = match &self.gpu {
            Some(gpu) => (Store::Gpu, gpu.total(), available.gpu),
            None => (Store::Host, self.host.total(), available.host),
        };
        Share { store, needed, available }
    }

    /// Whether it fits everywhere; `None` where that is not known.
    pub fn fits(&self, available: &Available) -> Option<bool> {
        let each: Vec<_> = self.shares(available).iter().map(Share::fits).collect();
        if each.contains(&Some(false)) { Some(false) } else { each.into_iter().collect::<Option<Vec<_>>>().map(|_| true) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(host: u64, gpu: Option<u64>) -> Held {
        Held { host: Memory { process: host, ..Memory::default() }, gpu: gpu.map(|weights| GpuMemory { weights, ..GpuMemory::default() }) }
    }

    #[test]
    fn both_memories_have_to_hold_their_part() {
        let available = |host, gpu| Available { host, gpu };
        let on_gpu = held(10, Some(100));
        assert_eq!(on_gpu.fits(&available(Some(10), Some(100))), Some(true));
        assert_eq!(on_gpu.fits(&available(Some(9), Some(100))), Some(false), "the host's is too small");
        assert_eq!(on_gpu.fits(&available(None, Some(99))), Some(false), "the GPU's is, whatever the host has");
        assert_eq!(on_gpu.fits(&available(None, Some(100))), None);
        assert_eq!(held(10, None).fits(&available(Some(10), None)), Some(true), "no GPU is asked for");
        let share = on_gpu.computing(&available(Some(5), Some(104)));
        assert_eq!((share.store, share.fits(), share.is_comfortable()), (Store::Gpu, Some(true), Some(false)));
        assert_eq!(held(8, None).computing(&available(Some(10), None)).is_comfortable(), Some(true));
    }
}
