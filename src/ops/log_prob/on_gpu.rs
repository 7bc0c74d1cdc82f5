//! The head on the GPU: a chunk's raw logits in f32, one kernel for what they say, one for their gradient in the type of the activations.

use super::{Head, Kept, ScoredTargets, TokenTarget, check, rows_per_chunk};
use crate::ops::gemm::Write;
use crate::ops::gpu::{self, Kernel, Operand, empty, empty_like, indices, rows};
use crate::ops::{Buffer, Scratch, on_device_of, read};
use anyhow::{Result, bail};
use candle_core::{DType, Tensor};

/// Of the block that walks a row of logits.
pub(in crate::ops) const THREADS: usize = 512;

/// What a backward reads.
#[derive(Debug)]
pub(super) struct KeptOnGpu {
    /// `[M]`
    log_sum_exp: Buffer,
    /// Of the first chunks, of each log-probability: its gradient by the raw logits `[R, V]`, or by the hidden state `[R, D]` where the head is frozen.
    chunks: Vec<Buffer>,
    is_frozen: bool,
}

/// Some of the targets, and where they are among all.
struct Chunk<'a> {
    hidden: &'a Tensor,
    weight: &'a Tensor,
    targets: &'a [TokenTarget],
    first: usize,
}

impl Chunk<'_> {
    /// Its part of something that all targets have one of.
    fn part_of(&self, all: &Tensor) -> Result<Tensor> {
        Ok(all.narrow(0, self.first, self.targets.len())?)
    }

    fn rows(&self) -> Vec<u32> {
        self.targets.iter().map(|target| target.row).collect()
    }

    fn tokens(&self) -> Result<Tensor> {
        indices(self.targets.iter().map(|target| target.token).collect(), self.hidden)
    }
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
        let kept_width = if is_frozen { width } else { n_vocab };
        let mut chunks = Vec::new();
        for (index, targets) in targets.chunks(rows_per_chunk).enumerate() {
            let chunk = Chunk { hidden, weight, targets, first: index * rows_per_chunk };
            let logits = self.logits_of(&chunk)?;
            let (tokens, log_probs, log_sum_exp) = (chunk.tokens()?, chunk.part_of(&log_probs)?, chunk.part_of(&log_sum_exp)?);
            let kernel = Kernel::new("log_prob_forward", &logits)?.floats(&logits)?.indices(&tokens)?.floats(&log_probs)?;
            kernel.floats(&log_sum_exp)?.integer(n_vocab)?.float(self.cap_or_0()).run([targets.len(), 1, 1], THREADS)?;
            if index == chunks.len() && (index + 1) * rows_per_chunk * kept_width <= n_kept {
                chunks.push(self.gradients_of(&chunk, logits, &log_sum_exp, is_frozen)?);
            }
        }
        let kept = Kept::OnGpu(KeptOnGpu { log_sum_exp, chunks, is_frozen });
        Ok(ScoredTargets { log_probs, log_sum_exp: Vec::new(), kept, rows_per_chunk })
    }

    /// `Head::backward` and `Head::backward_frozen`. What the loss makes of a token multiplies the rows of both products, not the logits' gradient: so
    /// that is the same whether it was kept or not, and to keep it takes half of what the logits would.
    pub(super) fn backward_on_gpu(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        (targets, scored): (&[TokenTarget], ScoredTargets),
        gradients: &Tensor,
        d_hidden: &Tensor,
        weight_gradient: Option<&Tensor>,
    ) -> Result<()> {
        scored.check(targets, gradients)?;
        let rows_per_chunk = scored.rows_per_chunk;
        let Kept::OnGpu(kept) = scored.kept else { bail!("these targets were not scored on the GPU") };
        let mut chunks = kept.chunks.into_iter();
        for (index, targets) in targets.chunks(rows_per_chunk).enumerate() {
            let chunk = Chunk { hidden, weight, targets, first: index * rows_per_chunk };
            let gradients = chunk.part_of(gradients)?;
            let of_token = match chunks.next() {
                Some(kept) => kept,
                None => self.gradients_of(&chunk, self.logits_of(&chunk)?, &chunk.part_of(&kept.log_sum_exp)?, kept.is_frozen)?,
            };
            if let Some(weight_gradient) = weight_gradient.filter(|_| !kept.is_frozen) {
                let x = rows::gather_scaled(hidden, Some(&gradients), chunk.rows(), 1.0)?;
                gpu::multiply(weight_gradient, Write::Add, 1.0, Operand::transposed(&of_token), Operand::new(&x))?;
            }
            let dx = if kept.is_frozen { of_token } else { state_gradients(&of_token, weight)? };
            let into: Vec<_> = chunk.rows().into_iter().map(Some).collect();
            rows::scatter_add_scaled(&dx, Some(&gradients), &into, d_hidden, 1.0)?;
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

    pub(in crate::ops) fn cap_or_0(&self) -> f64 {
        self.soft_cap.unwrap_or(0.0)
    }

    /// `x [R, D]` to `[R, V]`, f32, before the cap.
    pub(in crate::ops) fn raw_logits(&self, x: &Tensor, weight: &Tensor) -> Result<Buffer> {
        let logits = empty(&[x.dim(0)?, weight.dim(0)?], DType::F32, x.device())?;
        gpu::multiply(&logits, Write::Overwrite, 1.0, Operand::new(x), Operand::transposed(weight))?;
        Ok(logits)
    }

    /// Raw logits of a chunk's targets.
    fn logits_of(&self, chunk: &Chunk) -> Result<Buffer> {
        self.raw_logits(&*rows::gather(chunk.hidden, chunk.rows(), 1.0)?, chunk.weight)
    }

    /// Of each log-probability of a chunk: its gradient by the raw logits, `[R, V]`, in the type of the activations; by the hidden state, `[R, D]`, where the
    /// head is frozen.
    fn gradients_of(&self, chunk: &Chunk, logits: Buffer, log_sum_exp: &Tensor, is_frozen: bool) -> Result<Buffer> {
        let (n_rows, n_vocab) = logits.dims2()?;
        let (d_logits, tokens) = (empty_like(&[n_rows, n_vocab], chunk.hidden)?, chunk.tokens()?);
        let kernel = Kernel::new("log_prob_backward", &d_logits)?.values(&d_logits)?.floats(&logits)?.indices(&tokens)?;
        kernel.floats(log_sum_exp)?.integer(n_vocab)?.float(self.cap_or_0()).run([n_rows, 1, 1], THREADS)?;
        drop(logits);
        if is_frozen { state_gradients(&d_logits, chunk.weight) } else { Ok(d_logits) }
    }
}

/// `[R, V]` times `[V, D]`.
fn state_gradients(d_logits: &Tensor, weight: &Tensor) -> Result<Buffer> {
    let dx = empty_like(&[d_logits.dim(0)?, weight.dim(1)?], d_logits)?;
    gpu::multiply(&dx, Write::Overwrite, 1.0, Operand::new(d_logits), Operand::new(weight))?;
    Ok(dx)
}

#[cfg(test)]
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
                let log_probs = scored.log_probs.copy()?;
                let gradients = place.floats(gradients.clone(), &[2 * n]);
                let (d_hidden, d_weight) = (place.zeros(&[n, d]), place.floats(vec![0.5; v * d], &[v, d]));
                match is_frozen {
                    true => head.backward_frozen(&hidden, &weight, (&targets, scored), &gradients, &d_hidden)?,
                    false => head.backward(&hidden, &weight, (&targets, scored), &gradients, &d_hidden, Some(&d_weight))?,
                }
                Ok(vec![log_probs, d_hidden, d_weight])
            });
        }
    }

    #[test]
    fn what_is_not_a_number_shows() {
        use crate::ops::gpu::on_emulated_gpu;
        use crate::ops::tensor;
        let head = Head { soft_cap: None, compute: ComputeDtype::F32 };
        for (v, wrong) in [(520, 0), (515, 514)] {
            let weight = tensor((0..v).map(|token| if token == wrong { f32::NAN } else { 1.0 }).collect(), &[v, 1]).unwrap();
            let hidden = tensor(vec![1.0], &[1, 1]).unwrap();
            let target = [TokenTarget { row: 0, token: 3 }];
            let Some(scored) = on_emulated_gpu(|| head.score(&hidden, &weight, &target, 0).unwrap()).unwrap() else { return };
            assert!(read(&scored.log_probs).unwrap()[0].is_nan(), "{v} tokens");
        }
    }
}
