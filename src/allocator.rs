//! The system's allocator, settled for a trainer: what a step frees goes back, and what is large lies on large pages; and a thread that works for
//! strangers takes no more than its [`allowance`].

pub mod allowance;

use std::alloc::{GlobalAlloc, Layout, System};

/// Blocks from this size on are asked to lie on large pages, of 2 MiB each on x86-64.
const LARGE: usize = 4 << 20;

/// The system's allocator, which is asked for large pages where blocks are large. With pages of 4 KiB, the weights, gradients and moments of a
/// 135M model are half a million of them: each is faulted in and zeroed by itself, and most accesses to a new page miss the processor's table of
/// pages. Where the system has no large pages, or none left, nothing changes.
///
/// For the one `#[global_allocator]` of a program.
#[derive(Debug, Clone, Copy, Default)]
pub struct LargePages;

// SAFETY: every call is the system allocator's own; advice on the pages of a block changes neither the block nor its content.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allowance::charge(layout.size());
        // SAFETY: the caller's promises are the system's conditions.
        advise(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allowance::charge(layout.size());
        // SAFETY: as above.
        advise(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) };
        allowance::refund(layout.size());
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, n_bytes: usize) -> *mut u8 {
        // Both blocks may be there at a time.
        allowance::charge(n_bytes);
        // SAFETY: as above.
        let moved = advise(unsafe { System.realloc(block, layout, n_bytes) }, n_bytes);
        allowance::refund(layout.size());
        moved
    }
}

/// Asks for large pages under the whole pages of a large block.
#[inline]
fn advise(block: *mut u8, n_bytes: usize) -> *mut u8 {
    #[cfg(target_os = "linux")]
    if n_bytes >= LARGE && !block.is_null() {
        const PAGE: usize = 4096;
        let before = block.align_offset(PAGE);
        // SAFETY: the range lies within the block, which nobody else knows yet. Where the advice cannot be followed, nothing is lost.
        unsafe { libc::madvise(block.add(before).cast(), (n_bytes - before) / PAGE * PAGE, libc::MADV_HUGEPAGE) };
    }
    block
}

/// Sets the system's allocator once, before threads start: what a step frees goes back to the system, or to the next that asks.
///
/// glibc raises the size from which a block is mapped, and unmapped when it is freed, to 32 MiB as it sees such blocks freed. Activations that the
/// pool of `ops::buffer` lets go of would then leave holes among those that stay: 0.25 GiB after a few steps of a 135M model. One arena, because
/// each keeps what its threads freed.
pub fn settle() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes two integers and is called before other threads exist.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE as libc::c_int);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 16 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_every_size_are_whole() {
        for n_bytes in [1, 4095, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE + 17] {
            let layout = Layout::from_size_align(n_bytes, 64).unwrap();
            // SAFETY: the layout is not empty, and the block is freed with the layout that it has at that time.
            unsafe {
                let block = LargePages.alloc_zeroed(layout);
                assert!(!block.is_null() && (0..n_bytes).all(|i| *block.add(i) == 0));
                block.write_bytes(7, n_bytes);
                let grown = LargePages.realloc(block, layout, n_bytes + LARGE);
                assert!((0..n_bytes).all(|i| *grown.add(i) == 7));
                LargePages.dealloc(grown, Layout::from_size_align(n_bytes + LARGE, 64).unwrap());
            }
        }
    }
}
