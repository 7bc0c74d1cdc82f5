//! The allocator of every binary of this package on Linux, and how it is set.
//!
//! A step allocates and frees the same few gigabytes of activations as the step before. glibc hands such blocks back to the system, which clears
//! and maps them in again: a fifth of a step's CPU time. jemalloc keeps them, in one arena so that every thread reuses what any of them freed, on
//! huge pages; the price is that memory once used stays with the process until it ends.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

// SAFETY: jemalloc reads a `const char *` of this name when it starts; a reference to a zero-terminated static is one.
#[unsafe(export_name = "_rjem_malloc_conf")]
static MALLOC_CONF: &[u8; 96] = b"narenas:1,dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0,thp:always,metadata_thp:auto\0";
