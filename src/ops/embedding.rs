//! Token embeddings: a gather of rows, scaled (Gemma), and its backward, a scatter that adds in packing order.

use super::gpu;
use super::{Buffer, Scratch, read, update};
use anyhow::{Result, ensure};
use candle_core::Tensor;
use rayon::prelude::*;

/// `table [V, D]` and N token ids to `[N, D]`, multiplied by `scale`.
pub fn forward(table: &Tensor, tokens: &[u32], scale: f32) -> Result<Buffer> {
    let (n_vocab, width) = table.dims2()?;
    if let Some(token) = tokens.iter().find(|&&t| t as usize >= n_vocab) {
        ensure!(false, "token id {token} is outside the model's vocabulary of {n_vocab}: tokenizer and model do not belong together");
    }
    if gpu::has(table) {
        return gpu::rows::gather(table, tokens.to_vec(), scale);
    }
    let table = read(table)?;
    let mut rows = Scratch::new(tokens.len() * width);
    rows.par_chunks_mut(width).zip(tokens).for_each(|(row, &token)| {
        let source = &table[token as usize * width..][..width];
        row.iter_mut().zip(source).for_each(|(r, &s)| *r = s * scale);
    });
    Buffer::new(rows, &[tokens.len(), width])
}

/// Adds `scale * dy`'s rows to the rows of `table_gradient [V, D]` that they came from; `padding_token`'s row gets nothing.
pub fn backward(dy: &Tensor, tokens: &[u32], scale: f32, padding_token: Option<u32>, table_gradient: &Tensor) -> Result<()> {
    if gpu::has(dy) {
        let into: Vec<_> = tokens.iter().map(|&token| (Some(token) != padding_token).then_some(token)).collect();
        return gpu::rows::scatter_add(dy, &into, table_gradient, scale);
    }
    let width = dy.dim(1)?;
    let dy = read(dy)?;
    update(table_gradient, |table: &mut [f32]| {
        for (row, &token) in dy.chunks(width).zip(tokens).filter(|(_, token)| Some(**token) != padding_token) {
            let into = &mut table[token as usize * width..][..width];
            into.iter_mut().zip(row).for_each(|(t, &r)| *t += r * scale);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::tensor;
    use super::*;

    #[test]
    fn gathers_scales_and_scatters() {
        let table = tensor(vec![1f32, 2., 3., 4., 5., 6.], &[3, 2]).unwrap();
        let y = forward(&table, &[2, 0, 2], 2.0).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), [[10., 12.], [2., 4.], [10., 12.]]);
        let gradient = tensor(vec![1f32; 6], &[3, 2]).unwrap();
        backward(&y, &[2, 0, 2], 0.5, None, &gradient).unwrap();
        assert_eq!(gradient.to_vec2::<f32>().unwrap(), [[2., 3.], [1., 1.], [11., 13.]]);
        backward(&y, &[2, 0, 2], 0.5, Some(2), &gradient).unwrap();
        assert_eq!(gradient.to_vec2::<f32>().unwrap(), [[3., 5.], [1., 1.], [11., 13.]]);
    }

    #[test]
    fn a_foreign_token_is_an_error() {
        let table = tensor(vec![1f32; 6], &[3, 2]).unwrap();
        let message = forward(&table, &[0, 3], 1.0).unwrap_err().to_string();
        assert!(message.contains("token id 3") && message.contains("vocabulary of 3"), "{message}");
    }
}

#[cfg(test)]
mod gpu_tests {
    use super::*;
    use crate::ops::gpu::twin::agree;

    #[test]
    fn agrees_with_the_cpu() {
        let tokens: Vec<u32> = (0..70).map(|i| i * i % 11).collect();
        for width in [3, 24, 515, 1032, 5000] {
            agree(&format!("{width} wide"), |place| {
                let (table, dy) = (place.values(1, &[11, width]), place.values(2, &[70, width]));
                let rows = forward(&table, &tokens, 8.0)?.copy()?;
                let gradient = place.floats(vec![0.5; 11 * width], &[11, width]);
                backward(&dy, &tokens, 8.0, Some(4), &gradient)?;
                Ok(vec![rows, gradient])
            });
        }
    }
}
