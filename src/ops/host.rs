//! What the host does in the midst of a GPU's work, without anybody waiting for it.
//!
//! A loss is made of a few numbers by code of the host, and the backward is made of the loss. Whoever reads the numbers, computes and uploads leaves the
//! GPU without work meanwhile. So the host's part goes into the stream as a kernel does: a copy off the device, a call of a function, a copy back.
//! Forward, loss, backward and update of a step are all on their way before the first of them has begun, and the host waits once, for what it reports.
//! On the CPU, where an op is done when it returns, a call is a call.

use super::{gpu, values_of};
use anyhow::{Context, Error, Result, anyhow, ensure};
use candle_core::{DType, Device, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

/// A value that the host knows once the device has come that far.
#[must_use = "the device may have failed on the way to it"]
pub struct Later<T>(Box<dyn FnOnce() -> Result<T>>);

impl<T: 'static> Later<T> {
    /// One that is known.
    pub fn known(value: T) -> Self {
        Self(Box::new(|| Ok(value)))
    }

    /// Waits for it.
    pub fn wait(self) -> Result<T> {
        self.0()
    }

    /// What `f` makes of it.
    pub fn map<U>(self, f: impl FnOnce(T) -> U + 'static) -> Later<U> {
        Later(Box::new(|| self.wait().map(f)))
    }
}

/// Functions that the host calls when a device has come that far, in the order of the device's work.
#[derive(Default)]
pub struct Calls {
    failed: Arc<Failed>,
    in_stream: gpu::HostCalls,
}

impl Calls {
    /// Calls `work` with the values of `input`, f32, when they are known, and returns the tensor `[n_values]` that will hold what it gives.
    ///
    /// # Errors
    /// Those of `work`, on the CPU. On a GPU they come out of [`Calls::then`], where `what` says what was going on, and the tensor is NaN, of which no update
    /// comes.
    pub fn call(
        &mut self,
        what: impl FnOnce() -> String,
        input: &Tensor,
        n_values: usize,
        work: impl FnOnce(&[f32]) -> Result<Vec<f32>> + Send + 'static,
    ) -> Result<Tensor> {
        let work = move |input: &[f32]| {
            let values = work(input)?;
            ensure!(values.len() == n_values, "the host gave {} values for {n_values}", values.len());
            Ok(values)
        };
        if !gpu::has(input) {
            return Ok(Tensor::from_vec(work(&values_of(input)?)?, n_values, &Device::Cpu)?);
        }
        let (failed, what) = (Arc::clone(&self.failed), what());
        // The driver calls this: no panic may leave it.
        let panicked = |_| Err(anyhow!("what the host computes between forward and backward panicked"));
        let work = move |input: &[f32], output: &mut [f32]| {
            let caught = || catch_unwind(AssertUnwindSafe(|| work(input))).unwrap_or_else(panicked).context(what);
            failed.values_or_nan(caught, output);
        };
        let input = input.to_dtype(DType::F32)?;
        // Nothing is on its way to an empty tensor: it may be anywhere.
        let output = Tensor::zeros(n_values, DType::F32, if n_values == 0 { &Device::Cpu } else { input.device() })?;
        self.in_stream.put(&input, &output, Box::new(work))?;
        Ok(output)
    }

    /// What `value` makes of what the functions left behind, when all of them were called.
    pub fn then<T>(self, value: impl FnOnce() -> Result<T> + 'static) -> Later<T> {
        let Self { failed, in_stream } = self;
        Later(Box::new(move || {
            in_stream.wait()?;
            failed.0.lock().unwrap_or_else(PoisonError::into_inner).take().map_or_else(value, Err)
        }))
    }
}

/// The first error. No function is called behind it.
#[derive(Default)]
struct Failed(Mutex<Option<Error>>);

impl Failed {
    /// Writes what `work` gives: NaN where it fails, or something did before.
    fn values_or_nan(&self, work: impl FnOnce() -> Result<Vec<f32>>, output: &mut [f32]) {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        output.fill(f32::NAN);
        if failed.is_none() {
            match work() {
                Ok(values) => output.copy_from_slice(&values),
                Err(error) => *failed = Some(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{read, tensor};
    use anyhow::bail;
    use std::sync::OnceLock;

    fn twice(values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.iter().map(|value| 2.0 * value).collect())
    }

    #[test]
    fn on_the_cpu_a_call_is_a_call() {
        let mut calls = Calls::default();
        let doubled = calls.call(String::new, &tensor(vec![1.0, -3.0], &[2]).unwrap(), 2, twice).unwrap();
        assert_eq!(*read(&doubled).unwrap(), [2.0, -6.0]);
        assert_eq!(calls.then(|| Ok(7)).map(|seven| seven + 1).wait().unwrap(), 8);
        assert_eq!(Later::known("it").wait().unwrap(), "it");
        let mut calls = Calls::default();
        assert!(calls.call(String::new, &doubled, 3, twice).unwrap_err().to_string().contains("2 values for 3"));
        assert_eq!(calls.call(String::new, &doubled, 0, |_| bail!("no")).unwrap_err().to_string(), "no");
    }

    #[test]
    fn a_call_that_is_not_waited_for_is_made_all_the_same() {
        let heard = Arc::new(OnceLock::new());
        let mut calls = Calls::default();
        let hear = Arc::clone(&heard);
        let hear = move |values: &[f32]| hear.set(values.to_vec()).map(|()| Vec::new()).map_err(|_| anyhow!("called twice"));
        calls.call(String::new, &tensor(vec![1.5], &[1]).unwrap(), 0, hear).unwrap();
        drop(calls);
        assert_eq!(heard.get(), Some(&vec![1.5]));
    }
}

#[cfg(test)]
mod gpu_tests {
    use super::*;
    use crate::ops::gpu::twin::agree;
    use crate::ops::read;
    use anyhow::ensure;

    fn twice(values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.iter().map(|value| 2.0 * value).collect())
    }

    #[test]
    fn calls_stand_between_what_was_started_before_and_behind_them() {
        agree("calls", |place| {
            let x = place.values(1, &[3000]);
            let mut calls = Calls::default();
            let doubled = calls.call(String::new, &(&x + 1.0)?, 3000, twice)?;
            let again = calls.call(String::new, &(&doubled + 1.0)?, 3000, twice)?;
            let sum = (&doubled + &again)?;
            calls.then(|| Ok(())).wait()?;
            Ok(vec![doubled, again, sum])
        });
    }

    fn errors_come_later_and_nothing_is_called_behind_them(device: &Device) {
        let input = Tensor::new(&[1.0f32, -3.0], device).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hear = |what: &'static str| {
            let heard = Arc::clone(&heard);
            move |values: &[f32]| {
                heard.lock().unwrap().push(what);
                if what == "panic" {
                    panic!("on purpose");
                }
                ensure!(what != "bad", "no");
                twice(values)
            }
        };
        for bad in ["bad", "panic"] {
            heard.lock().unwrap().clear();
            let mut calls = Calls::default();
            let results = ["good", bad, "behind"].map(|what| calls.call(|| "row 7".into(), &input, 2, hear(what)).unwrap());
            let error = format!("{:#}", calls.then(|| Ok(())).wait().unwrap_err());
            assert!(error == "row 7: no" || error.starts_with("row 7: ") && error.contains("panicked"), "{error}");
            let results = results.map(|values| read(&values).unwrap().to_vec());
            assert_eq!(results[0], [2.0, -6.0]);
            assert!(results[1..].iter().flatten().all(|value| value.is_nan()), "{results:?}");
            assert_eq!(*heard.lock().unwrap(), ["good", bad]);
        }
        let mut calls = Calls::default();
        assert_eq!(calls.call(String::new, &input, 0, |_| Ok(Vec::new())).unwrap().elem_count(), 0);
        assert_eq!(calls.then(|| Ok(7)).wait().unwrap(), 7);
    }

    #[test]
    fn errors_come_at_the_end() {
        gpu::on_emulated_gpu(|| errors_come_later_and_nothing_is_called_behind_them(&Device::Cpu)).unwrap();
        #[cfg(feature = "cuda")]
        if let Ok(device) = gpu::at(0) {
            errors_come_later_and_nothing_is_called_behind_them(&device);
        }
    }
}
