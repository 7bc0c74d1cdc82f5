//! The head on the GPU: a chunk's raw logits in f32, one kernel for what they say, one for their gradient in the type of the activations.

use super::{Head, Kept, ScoredTargets, TokenTarget, check, rows_per_chunk};
use crate::ops::gemm::Write;
use crate::ops::gpu::{self, Kernel, Operand, empty, empty_like, floats, indices, rows};
use crate::ops::{Buffer, Scratch, on_device_of, read};
use anyhow::{Result, bail};
use candle_core::{DType, Tensor};

const THREADS: usize = 512;

/// What a backward reads.
#[derive(Debug)]
pub(super) struct KeptOnGpu {
    /// `[M]`
    log_sum_exp: Buffer,
    /// Of the first chunks: raw logits `[R, V]`, or d log-probability / d hidden state `[R, D]` where the head is frozen.
    chunks: Vec<Buffer>,
    is_frozen: bool,
}

impl Head {
    /// `Head::score` or, with `is_frozen`, `Head::score_frozen`.
    pub(super) fn score_in_chunks_on_gpu(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &[TokenTarget],
        n_kept: usize,
        is_frozen: bool,
        chunk: usize,
    ) -> Result<ScoredTargets> {
        let (n_vocab, width) = weight.dims2()?;
        check(targets, hidden.dim(0)?, n_vocab)?;
        let rows_per_chunk = rows_per_chunk(targets.len(), n_vocab, chunk);
        let [log_probs, log_sum_exp] = [(); 2].map(|()| empty(&[targets.len()], DType::F32, hidden.device()));
        let (log_probs, log_sum_exp) = (log_probs?, log_sum_exp?);
        let mut chunks = Vec::new();
        for (index, targets) in targets.chunks(rows_per_chunk).enumerate() {
            let (first, n_rows) = (index * rows_per_chunk, targets.len());
            let (logits, tokens) = (self.raw_logits(&*gather(hidden, targets)?, weight)?, tokens(targets, hidden)?);
            let (log_probs, log_sum_exp) = (log_probs.narrow(0, first, n_rows)?, log_sum_exp.narrow(0, first, n_rows)?);
            let kernel = Kernel::new("log_prob_forward", &logits)?.floats(&logits)?.indices(&tokens)?;
            kernel.floats(&log_probs)?.floats(&log_sum_exp)?.integer(n_vocab)?.float(self.cap_or_0()).run([n_rows, 1, 1], THREADS)?;
            let kept_width = if is_frozen { width } else { n_vocab };
            if index == chunks.len() && (index + 1) * rows_per_chunk * kept_width <= n_kept {
                chunks.push(if is_frozen { self.state_gradients_on_gpu(weight, hidden, &logits, &tokens, &log_sum_exp)? } else { logits });
            }
        }
        let log_probs = read(&log_probs)?.to_vec();
        let kept = Kept::OnGpu(KeptOnGpu { log_sum_exp, chunks, is_frozen });
        Ok(ScoredTargets { log_probs, log_sum_exp: Vec::new(), kept, rows_per_chunk })
    }

    /// `Head::backward` and `Head::backward_frozen`.
    pub(super) fn backward_on_gpu(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        (targets, scored): (&[TokenTarget], ScoredTargets),
        gradients: &[f32],
        d_hidden: &Tensor,
        weight_gradient: Option<&Tensor>,
    ) -> Result<()> {
        scored.check(targets, gradients)?;
        let rows_per_chunk = scored.rows_per_chunk;
        let Kept::OnGpu(kept) = scored.kept else { bail!("these targets were not scored on the GPU") };
        let mut chunks = kept.chunks.into_iter();
        for (index, (targets, gradients)) in targets.chunks(rows_per_chunk).zip(gradients.chunks(rows_per_chunk)).enumerate() {
            let log_sum_exp = kept.log_sum_exp.narrow(0, index * rows_per_chunk, targets.len())?;
            let gradients = floats(gradients, hidden)?;
            let into: Vec<_> = targets.iter().map(|target| Some(target.row)).collect();
            if kept.is_frozen {
                let state_gradients = match chunks.next() {
                    Some(kept) => kept,
                    None => {
                        let logits = self.raw_logits(&*gather(hidden, targets)?, weight)?;
                        self.state_gradients_on_gpu(weight, hidden, &logits, &tokens(targets, hidden)?, &log_sum_exp)?
                    }
                };
                rows::scatter_add_scaled(&state_gradients, Some(&gradients), &into, d_hidden, 1.0)?;
                continue;
            }
            let x = gather(hidden, targets)?;
            let logits = chunks.next().map_or_else(|| self.raw_logits(&x, weight), Ok)?;
            let d_logits = self.d_logits(hidden, &logits, &tokens(targets, hidden)?, &log_sum_exp, Some(&gradients))?;
            drop(logits);
            if let Some(weight_gradient) = weight_gradient {
                gpu::multiply(weight_gradient, Write::Add, 1.0, Operand::transposed(&d_logits), Operand::new(&x))?;
            }
            let dx = empty_like(x.dims(), hidden)?;
            gpu::multiply(&dx, Write::Overwrite, 1.0, Operand::new(&d_logits), Operand::new(weight))?;
            rows::scatter_add(&dx, &into, d_hidden, 1.0)?;
        }
        Ok(())
    }

    /// `Head::logits`, from the CPU and back to it.
    pub(super) fn logits_on_gpu(&self, hidden: &[f32], weight: &Tensor) -> Result<Scratch> {
        let width = weight.dim(1)?;
        let x = on_device_of(weight, hidden, &[hidden.len() / width, width])?;
        let mut logits = Scratch::copy_of(&read(&*self.raw_logits(&x, weight)?)?);
        self.cap(&mut logits);
        Ok(logits)
    }

    fn cap_or_0(&self) -> f64 {
        self.soft_cap.unwrap_or(0.0)
    }

    /// `x [R, D]` to `[R, V]`, f32, before the cap.
    fn raw_logits(&self, x: &Tensor, weight: &Tensor) -> Result<Buffer> {
        let logits = empty(&[x.dim(0)?, weight.dim(0)?], DType::F32, x.device())?;
        gpu::multiply(&logits, Write::Overwrite, 1.0, Operand::new(x), Operand::transposed(weight))?;
        Ok(logits)
    }

    /// The gradient of raw logits, of the type of `like`.
    fn d_logits(
        &self,
        like: &Tensor,
        logits: &Tensor,
        tokens: &Tensor,
        log_sum_exp: &Tensor,
        gradients: Option<&Tensor>,
    ) -> Result<Buffer> {
        let (n_rows, n_vocab) = logits.dims2()?;
        let d_logits = empty_like(&[n_rows, n_vocab], like)?;
        let kernel =
            Kernel::new("log_prob_backward", &d_logits)?.values(&d_logits)?.floats(logits)?.indices(tokens)?.floats(log_sum_exp)?;
        kernel.maybe_floats(gradients)?.integer(n_vocab)?.float(self.cap_or_0()).run([n_rows, 1, 1], THREADS)?;
        Ok(d_logits)
    }

    /// d log-probability / d hidden state of each target, `[R, D]`.
    fn state_gradients_on_gpu(
        &self,
        weight: &Tensor,
        like: &Tensor,
        logits: &Tensor,
        tokens: &Tensor,
        log_sum_exp: &Tensor,
    ) -> Result<Buffer> {
        let d_logits = self.d_logits(like, logits, tokens, log_sum_exp, None)?;
        let dx = empty_like(&[logits.dim(0)?, weight.dim(1)?], like)?;
        gpu::multiply(&dx, Write::Overwrite, 1.0, Operand::new(&d_logits), Operand::new(weight))?;
        Ok(dx)
    }
}

/// `Head::chunk_backward`, from the CPU and back to it.
pub(super) fn logits_backward_on_gpu(x: &[f32], weight: &Tensor, d_logits: &[f32], weight_gradient: Option<&Tensor>) -> Result<Scratch> {
    let (n_vocab, width) = weight.dims2()?;
    let n_rows = x.len() / width;
    let (x, d_logits) = (on_device_of(weight, x, &[n_rows, width])?, on_device_of(weight, d_logits, &[n_rows, n_vocab])?);
    if let Some(weight_gradient) = weight_gradient {
        gpu::multiply(weight_gradient, Write::Add, 1.0, Operand::transposed(&d_logits), Operand::new(&x))?;
    }
    let dx = empty_like(&[n_rows, width], weight)?;
    gpu::multiply(&dx, Write::Overwrite, 1.0, Operand::new(&d_logits), Operand::new(weight))?;
    Ok(Scratch::copy_of(&read(&dx)?))
}

fn gather(hidden: &Tensor, targets: &[TokenTarget]) -> Result<Buffer> {
    rows::gather(hidden, targets.iter().map(|target| target.row).collect(), 1.0)
}

fn tokens(targets: &[TokenTarget], like: &Tensor) -> Result<Tensor> {
    indices(targets.iter().map(|target| target.token).collect(), like)
}

#[cfg(all(test, any(feature = "cuda", feature = "emulator")))]
mod tests {
    use super::*;
    use crate::config::ComputeDtype;
    use crate::ops::gpu::has;
    use crate::ops::gpu::twin::agree;

    #[test]
    fn agrees_with_the_cpu_however_much_is_kept() {
        let d = 24;
        for (n, v, soft_cap, n_kept, is_frozen) in [
            (45, 515, None, 0, false),
            (45, 515, Some(4.0), 0, false),
            (45, 520, None, 36 * 520, false),
            (45, 515, None, 1 << 20, false),
            (45, 520, Some(4.0), 36 * d, true),
            (45, 515, None, 0, true),
            // More than a block's threads take at a time.
            (3, 4200, Some(4.0), 0, false),
        ] {
            // A row twice, as where two answers begin behind one prompt.
            let targets: Vec<_> = (0..2 * n as u32).map(|i| TokenTarget { row: i / 2, token: (7 * i) % v as u32 }).collect();
            let gradients: Vec<f32> = (0..2 * n).map(|i| (i as f32 * 0.37).sin()).collect();
            let head = Head { soft_cap, compute: ComputeDtype::F32 };
            agree(&format!("{v} tokens, cap {soft_cap:?}, {n_kept} kept, frozen {is_frozen}"), |place| {
                let (hidden, weight) = (place.values(1, &[n, d]), place.values(2, &[v, d]));
                let scored = match (has(&hidden), is_frozen) {
                    (true, _) => head.score_in_chunks_on_gpu(&hidden, &weight, &targets, n_kept, is_frozen, 20 * v)?,
                    (false, true) => head.score_frozen(&hidden, &weight, &targets, n_kept)?,
                    (false, false) => head.score(&hidden, &weight, &targets, n_kept)?,
                };
                let log_probs = place.floats(scored.log_probs.clone(), &[2 * n]);
                let (d_hidden, d_weight) = (place.zeros(&[n, d]), place.floats(vec![0.5; v * d], &[v, d]));
                match is_frozen {
                    true => head.backward_frozen(&hidden, &weight, (&targets, scored), &gradients, &d_hidden)?,
                    false => head.backward(&hidden, &weight, (&targets, scored), &gradients, &d_hidden, Some(&d_weight))?,
                }
                Ok(vec![log_probs, d_hidden, d_weight])
            });
        }
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn what_is_not_a_number_shows() {
        use crate::ops::gpu::on_emulated_gpu;
        use crate::ops::tensor;
        let head = Head { soft_cap: None, compute: ComputeDtype::F32 };
        for (v, wrong) in [(520, 0), (515, 514)] {
            let weight = tensor((0..v).map(|token| if token == wrong { f32::NAN } else { 1.0 }).collect(), &[v, 1]).unwrap();
            let hidden = tensor(vec![1.0], &[1, 1]).unwrap();
            let target = [TokenTarget { row: 0, token: 3 }];
            let scored = on_emulated_gpu(|| head.score(&hidden, &weight, &target, 0)).unwrap();
            assert!(scored.log_probs[0].is_nan(), "{v} tokens");
        }
    }
}
