//! Means over some rows of a matrix, and their backward: what is looked at of hidden states leaves the device already pooled.

use super::gpu;
use super::{read, tensor, update};
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

/// Which rows a mean is over, one `Vec` for each mean. A row may be in several.
pub type Groups = [Vec<usize>];

/// The mean of each group's rows of `x [N, D]`, one behind the other: `[S, D]`, f32, where `x` is. Summed in the order of the rows, in f64 on the CPU and
/// f32 on a GPU.
pub fn forward(x: &Tensor, groups: &Groups) -> Result<Tensor> {
    check(x, groups)?;
    if groups.is_empty() {
        // Of nothing it does not matter where it is, and a GPU has no memory of no bytes.
        return tensor(Vec::new(), &[0, x.dim(1)?]);
    }
    if gpu::has(x) {
        return on_gpu::forward(x, groups);
    }
    let (width, x) = (x.dim(1)?, read(x)?);
    let mut means = Vec::with_capacity(groups.len() * width);
    for rows in groups {
        let mut sums = vec![0.0f64; width];
        for row in rows {
            sums.iter_mut().zip(&x[row * width..][..width]).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        means.extend(sums.into_iter().map(|sum| (sum / rows.len() as f64) as f32));
    }
    tensor(means, &[groups.len(), width])
}

/// Adds the gradient of the means, `d_means [S, D]`, f32, to that of their rows, `dx [N, D]`.
pub fn backward(d_means: &Tensor, groups: &Groups, dx: &Tensor) -> Result<()> {
    check(dx, groups)?;
    let width = dx.dim(1)?;
    ensure!(d_means.dims() == [groups.len(), width], "{:?} values for the gradients of {} means of {width}", d_means.dims(), groups.len());
    if groups.is_empty() {
        return Ok(());
    }
    if gpu::has(dx) {
        return on_gpu::backward(d_means, groups, dx);
    }
    let d_means = read(d_means)?;
    update(dx, |dx| {
        for (rows, d_mean) in groups.iter().zip(d_means.chunks(width)) {
            let share = 1.0 / rows.len() as f64;
            for row in rows {
                let d_row = &mut dx[row * width..][..width];
                d_row.iter_mut().zip(d_mean).for_each(|(d, &d_mean)| *d += (share * f64::from(d_mean)) as f32);
            }
        }
    })
}

fn check(x: &Tensor, groups: &Groups) -> Result<()> {
    let n_rows = x.dim(0)?;
    ensure!(groups.iter().all(|rows| !rows.is_empty()), "a mean over no rows");
    ensure!(groups.iter().flatten().all(|&row| row < n_rows), "a row outside {n_rows} rows");
    Ok(())
}

mod on_gpu {
    use super::super::gpu::{floats, rows};
    use super::*;

    /// Of every row of every group: the row, its group, and one over the group's size.
    fn members(groups: &Groups) -> (Vec<u32>, Vec<Option<u32>>, Vec<f32>) {
        let of_group = |(group, rows): (u32, &Vec<usize>)| {
            let share = (1.0 / rows.len() as f64) as f32;
            rows.iter().map(move |&row| (row as u32, Some(group), share)).collect::<Vec<_>>()
        };
        let members: Vec<_> = (0..).zip(groups).flat_map(of_group).collect();
        let mut lists = (Vec::new(), Vec::new(), Vec::new());
        for (row, group, share) in members {
            lists.0.push(row);
            lists.1.push(group);
            lists.2.push(share);
        }
        lists
    }

    pub fn forward(x: &Tensor, groups: &Groups) -> Result<Tensor> {
        let (member_rows, into, shares) = members(groups);
        let picked = rows::gather(x, member_rows, 1.0)?;
        let means = Tensor::zeros((groups.len(), x.dim(1)?), DType::F32, x.device())?;
        rows::scatter_add_scaled(&picked, Some(&floats(&shares, x)?), &into, &means, 1.0)?;
        Ok(means)
    }

    pub fn backward(d_means: &Tensor, groups: &Groups, dx: &Tensor) -> Result<()> {
        let (member_rows, group_of, shares) = members(groups);
        let spread = rows::gather(&d_means.to_dtype(dx.dtype())?, group_of.into_iter().flatten().collect(), 1.0)?;
        let into: Vec<_> = member_rows.into_iter().map(Some).collect();
        rows::scatter_add_scaled(&spread, Some(&floats(&shares, dx)?), &into, dx, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{check, tensor};
    use super::*;

    #[test]
    fn means_and_shares_by_hand() {
        let x = tensor(vec![1.0, 2.0, 3.0, 4.0, 50.0, 60.0], &[3, 2]).unwrap();
        let means = forward(&x, &[vec![0, 1], vec![2]]).unwrap();
        assert_eq!((means.dims(), &*read(&means).unwrap()), (&[2, 2][..], &[2.0, 3.0, 50.0, 60.0][..]));
        assert_eq!(forward(&x, &[]).unwrap().dims(), [0, 2]);
        let dx = tensor(vec![0.5; 6], &[3, 2]).unwrap();
        backward(&tensor(vec![4.0, -2.0, 1.0, 1.0], &[2, 2]).unwrap(), &[vec![0, 2], vec![2]], &dx).unwrap();
        assert_eq!(*read(&dx).unwrap(), [2.5, -0.5, 0.5, 0.5, 3.5, 0.5]);
        assert!(forward(&x, &[vec![3]]).is_err() && forward(&x, &[vec![]]).is_err());
    }

    #[test]
    fn the_backward_is_the_derivative() {
        let groups = [vec![0, 2, 3], vec![3], vec![1, 0]];
        let at = check::values(1, 4 * 3);
        let weights = check::values(2, 3 * 3);
        let loss = |x: &[f64]| -> f64 {
            let means =
                groups.iter().flat_map(|rows| (0..3).map(move |i| rows.iter().map(|row| x[row * 3 + i]).sum::<f64>() / rows.len() as f64));
            means.zip(&weights).map(|(mean, weight)| mean * weight).sum()
        };
        let dx = tensor(vec![0.0; 12], &[4, 3]).unwrap();
        backward(&tensor(check::to_f32(&weights), &[3, 3]).unwrap(), &groups, &dx).unwrap();
        check::gradient_of_f32("pool", &at, &read(&dx).unwrap(), loss);
        let means = forward(&tensor(check::to_f32(&at), &[4, 3]).unwrap(), &groups).unwrap();
        assert!((check::dot(&read(&means).unwrap().iter().map(|&m| f64::from(m)).collect::<Vec<_>>(), &weights) - loss(&at)).abs() < 1e-6);
    }
}

#[cfg(test)]
mod gpu_tests {
    use super::super::gpu::twin::agree;
    use super::*;

    #[test]
    fn agrees_with_the_cpu() {
        for width in [5, 64, 300] {
            let groups = [(0..40).collect(), vec![3, 1, 41], vec![41]];
            agree(&format!("width {width}"), |place| {
                let (x, dx) = (place.values(1, &[42, width]), place.values(2, &[42, width]));
                let means = forward(&x, &groups)?;
                let d_means = means.affine(1.0, -0.25)?;
                backward(&d_means, &groups, &dx)?;
                Ok(vec![means, dx])
            });
        }
    }
}
