//! The first values of a new adapter, as PEFT draws them: A from `kaiming_uniform(a = sqrt 5)`, which is U(-1 / sqrt(in), 1 / sqrt(in)), and B zero, so that
//! an adapter begins by changing nothing.

use crate::model::low_rank::{names, projection_of};
use crate::model::parameter::Parameter;
use crate::ops::dropout::{mix_in, mix_text};
use crate::ops::update;
use anyhow::Result;

/// Fills the A matrices among `parameters`. A value depends on `seed`, on its matrix's name and on its place there, and on nothing else.
pub fn fill(parameters: &[Parameter], seed: u64) -> Result<()> {
    for parameter in parameters {
        let Some(projection) = projection_of(&parameter.name) else { continue };
        let [a, _] = names(projection);
        if parameter.name == a {
            let bound = 1.0 / (parameter.value.dim(1)? as f64).sqrt();
            let key = mix_text(mix_in(seed, 1), &parameter.name);
            update(&parameter.value, |values: &mut [f32]| {
                values.iter_mut().enumerate().for_each(|(i, value)| *value = (bound * signed(mix_in(key, i as u64))) as f32);
            })?;
        }
    }
    Ok(())
}

/// In [-1, 1), of 53 of the bits.
fn signed(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{read, tensor};

    fn parameters() -> Vec<Parameter> {
        let shapes = [[16, 400], [300, 16]];
        let named = names("model.layers.0.self_attn.q_proj").into_iter().zip(shapes);
        named
            .map(|(name, shape)| Parameter { name, value: tensor(vec![0.0; shape[0] * shape[1]], &shape).unwrap(), gradient: None })
            .collect()
    }

    #[test]
    fn a_is_uniform_within_its_bound_and_b_is_zero() {
        let filled = parameters();
        fill(&filled, 7).unwrap();
        let a = read(&filled[0].value).unwrap().to_vec();
        let bound = 1.0 / 400f32.sqrt();
        assert!(a.iter().all(|value| value.abs() <= bound));
        let n = a.len() as f64;
        let mean = a.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = a.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
        // Of a uniform distribution: variance bound² / 3, known to about 1 % from 6,400 values.
        let expected = f64::from(bound).powi(2) / 3.0;
        assert!(mean.abs() < 4.0 * (expected / n).sqrt() && (variance / expected - 1.0).abs() < 0.05, "{mean} {variance} {expected}");
        assert!(read(&filled[1].value).unwrap().iter().all(|&value| value == 0.0));

        let [same, other] = [7, 8].map(|seed| {
            let filled = parameters();
            fill(&filled, seed).unwrap();
            read(&filled[0].value).unwrap().to_vec()
        });
        assert!(a == same && a != other);
    }
}
