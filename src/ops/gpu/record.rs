//! How long each kernel and each product takes, while somebody asks: a mark in the stream before and behind every launch of this thread.
//!
//! What candle starts itself (copies, fills) is not recorded. A kernel that finds the card idle counts the host's time between its mark and its start,
//! a few microseconds: the sum of all durations is at most that much too large.

use anyhow::{Result, ensure};
use candle_core::Device;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::CudaEvent;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

/// All launches of one kernel, or of one product's shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recorded {
    pub name: String,
    pub n_launches: usize,
    pub seconds: f64,
}

struct Launch {
    name: String,
    start: Mark,
    end: Mark,
}

/// A moment of the card's stream, or of the host, which does the emulated GPU's work itself.
enum Mark {
    Host(Instant),
    #[cfg(feature = "cuda")]
    Cuda(CudaEvent),
}

thread_local! {
    static LAUNCHES: RefCell<Option<Vec<Launch>>> = const { RefCell::new(None) };
}

/// Does `work` and says what this thread launched meanwhile, by name, the longest first. Waits for the GPU.
///
/// # Errors
/// Those of `work`; a recording within a recording.
pub fn record<R>(work: impl FnOnce() -> Result<R>) -> Result<(R, Vec<Recorded>)> {
    ensure!(LAUNCHES.with_borrow(Option::is_none), "launches are being recorded already");
    LAUNCHES.set(Some(Vec::new()));
    let result = work();
    let launches = LAUNCHES.take().unwrap_or_default();
    let result = result?;
    let mut by_name = BTreeMap::<String, (usize, f64)>::new();
    for Launch { name, start, end } in launches {
        let (n_launches, seconds) = by_name.entry(name).or_default();
        *n_launches += 1;
        *seconds += start.seconds_to(&end)?;
    }
    let mut recorded: Vec<_> = by_name.into_iter().map(|(name, (n_launches, seconds))| Recorded { name, n_launches, seconds }).collect();
    recorded.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok((result, recorded))
}

/// Starts something on `device`, between two marks where launches are recorded.
pub(super) fn launch(device: &Device, name: impl FnOnce() -> String, start: impl FnOnce() -> Result<()>) -> Result<()> {
    if LAUNCHES.with_borrow(Option::is_none) {
        return start();
    }
    let before = Mark::now(device)?;
    start()?;
    let launch = Launch { name: name(), start: before, end: Mark::now(device)? };
    LAUNCHES.with_borrow_mut(|launches| launches.as_mut().map(|launches| launches.push(launch)));
    Ok(())
}

impl Mark {
    fn now(device: &Device) -> Result<Self> {
        Ok(match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Self::Cuda(super::cuda::mark(device)?),
            _ => Self::Host(Instant::now()),
        })
    }

    fn seconds_to(&self, end: &Self) -> Result<f64> {
        match (self, end) {
            (Self::Host(start), Self::Host(end)) => Ok(end.duration_since(*start).as_secs_f64()),
            #[cfg(feature = "cuda")]
            (Self::Cuda(start), Self::Cuda(end)) => Ok(1e-3 * f64::from(start.elapsed_ms(end)?)),
            #[cfg(feature = "cuda")]
            _ => anyhow::bail!("marks of two devices"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ComputeDtype;
    use crate::ops::gpu::on_emulated_gpu;
    use crate::ops::{clear, linear};
    use candle_core::{DType, Tensor};

    fn matrix(rows: usize, columns: usize) -> Tensor {
        Tensor::zeros((rows, columns), DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn launches_are_counted_by_name_while_they_are_recorded() {
        on_emulated_gpu(|| {
            let work = || -> Result<()> {
                (0..3).try_for_each(|_| linear::forward(&matrix(2, 8), &matrix(4, 8), None, ComputeDtype::F32).map(drop))?;
                clear(&matrix(2, 8))
            };
            work().unwrap();
            let ((), recorded) = record(work).unwrap();
            let mut counts: Vec<_> = recorded.iter().map(|of| (of.name.as_str(), of.n_launches)).collect();
            counts.sort_unstable();
            assert_eq!(counts, [("clear_f32", 1), ("product 2 x 8 x 4, f32 to f32", 3)]);
            assert!(recorded.iter().all(|of| of.seconds > 0.0) && recorded.is_sorted_by(|a, b| a.seconds >= b.seconds), "{recorded:?}");
            assert_eq!(record(|| Ok(7)).unwrap(), (7, vec![]));
        })
        .unwrap();
    }

    #[test]
    fn an_error_ends_the_recording() {
        assert!(record(|| -> Result<()> { anyhow::bail!("stop") }).is_err());
        let nested = record(|| record(|| Ok(())));
        assert!(nested.unwrap_err().to_string().contains("already"));
        assert!(record(|| Ok(())).is_ok());
    }
}
