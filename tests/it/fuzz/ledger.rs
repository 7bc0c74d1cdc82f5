//! What a worker has done so far, in memory that outlives it: whatever kills it, the parent knows at which input.

use memmap2::MmapMut;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Numbers in a file that two processes have mapped.
pub struct Ledger(MmapMut);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The input that is being read.
    Index,
    Accepted,
    Rejected,
    SlowestMicros,
    SlowestIndex,
    LongestError,
    /// 1: the input took too long. 2: all inputs are done. 3: it took too much memory.
    End,
}

impl Ledger {
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        file.set_len(8 * 8).unwrap();
        // SAFETY: the file is ours; the two processes that map it go through atomics.
        Self(unsafe { MmapMut::map_mut(&file) }.unwrap())
    }

    fn entry(&self, entry: Entry) -> &AtomicU64 {
        // SAFETY: within the eight numbers of the mapping, which is aligned to a page.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().cast::<u64>().add(entry as usize).cast_mut()) }
    }

    pub fn get(&self, entry: Entry) -> u64 {
        self.entry(entry).load(SeqCst)
    }

    pub fn set(&self, entry: Entry, value: u64) {
        self.entry(entry).store(value, SeqCst);
    }

    pub fn add(&self, entry: Entry) {
        self.entry(entry).fetch_add(1, SeqCst);
    }
}
