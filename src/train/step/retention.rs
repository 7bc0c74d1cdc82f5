//! The retention term of one micro-batch of dominant pairs: its value, noted for each row, and its gradient.

use super::dominant::{DominantGroup, rows_of};
use super::{Step, note};
use crate::config::RetentionKind;
use crate::data::batch::PairSpans;
use crate::data::encode::Response;
use crate::model::decoder::Forward;
use crate::objective::retention::{distance, distance_backward, sequence_weight};
use crate::ops::divergence::{Backward, Predicting, divergence};
use crate::ops::{self, Buffer, pool};
use crate::scoring::KeptStates;
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use std::iter::repeat_n;
use std::sync::Arc;
use tracing::info_span;

impl Step<'_> {
    /// d loss / d hidden states, where it is wanted. For `kl` this also adds to the head's gradient.
    pub(super) fn retention(
        &mut self,
        groups: &[DominantGroup],
        spans: &[PairSpans],
        forward: &Forward,
        named: impl FnOnce() -> String,
    ) -> Result<Option<Buffer>> {
        let reference = self.reference.dominant().context("the retention term")?;
        let (hidden_size, frozen_size) = (self.policy.description().hidden_size, reference.hidden_size());
        ensure!(
            hidden_size == frozen_size,
            "retention compares hidden states, and the policy's have {hidden_size} values, the reference's {frozen_size}"
        );
        let kept = KeptStates::of(&self.settings.retention);
        let rows_of = |(group, spans): (&DominantGroup, &PairSpans)| {
            let of = |span, response: &Response| kept.rows(span, response.n_end_tokens);
            [of(&spans.chosen, &group.pair.chosen), of(&spans.rejected, &group.pair.rejected)].concat()
        };
        let rows: Vec<Vec<usize>> = groups.iter().zip(spans).flat_map(rows_of).collect();
        let states_SD = pool::forward(&forward.hidden_ND, &rows)?;
        let d_states_SD = match self.settings.retention.kind {
            RetentionKind::None => None,
            RetentionKind::Hidden => self.distances(groups, &states_SD, named)?,
            RetentionKind::Kl => self.divergences(groups, &states_SD, named)?,
        };
        let Some(d_states_SD) = d_states_SD else { return Ok(None) };
        let d_hidden_ND = ops::zeros_like(&forward.hidden_ND)?;
        pool::backward(&d_states_SD, &rows, &d_hidden_ND)?;
        Ok(Some(d_hidden_ND))
    }

    /// d loss / d retention of one sequence of a group, where its gradient is wanted.
    fn scale(&self, group: &DominantGroup) -> Option<f64> {
        let scale = self.settings.retention.weight * sequence_weight(group.rows.len(), self.totals.n_rows);
        self.backward.gradients.of_retention().then_some(scale)
    }

    /// `hidden`: how far the pooled states `[S, D]` are from the frozen ones, and d loss / d states.
    fn distances(&mut self, groups: &[DominantGroup], states_SD: &Tensor, named: impl FnOnce() -> String) -> Result<Option<Tensor>> {
        let reference = self.reference.dominant()?;
        let frozen = |group: &DominantGroup| Ok(reference.pair(group.pair)?.map(|sequence| sequence.states.clone()));
        let frozen: Vec<[Vec<f32>; 2]> = info_span!("reference").in_scope(|| groups.iter().map(frozen).collect::<Result<_>>())?;
        let (rows_of, scales): (Vec<_>, Vec<_>) = (rows_of(groups), groups.iter().map(|group| self.scale(group)).collect());
        let (found, reduction) = (Arc::clone(&self.found), self.settings.retention.reduction);
        let is_wanted = self.backward.gradients.of_retention();
        let n_values = if is_wanted { states_SD.elem_count() } else { 0 };
        let d_states = self.calls.call(named, &states_SD.flatten_all()?, n_values, move |mut states_SD| {
            let mut d_states_SD = Vec::with_capacity(n_values);
            for ((rows, scale), frozen) in rows_of.iter().zip(scales).zip(frozen) {
                let mut values = [0.0; 2];
                for (value, frozen_D) in values.iter_mut().zip(&frozen) {
                    let states_D = states_SD.split_off(..frozen_D.len()).context("states of every sequence were pooled")?;
                    *value = distance(states_D, frozen_D, reduction);
                    let d_states_D = scale.map(|scale| distance_backward(states_D, frozen_D, reduction, scale));
                    d_states_SD.extend(d_states_D.into_iter().flatten().map(|d| d as f32));
                }
                rows.iter().try_for_each(|&row| note(&found.dominant[row].retention, values))?;
            }
            Ok(d_states_SD)
        })?;
        Ok(is_wanted.then(|| d_states.reshape(states_SD.dims())).transpose()?)
    }

    /// `kl`: how far the distributions of next tokens that the states `[S, D]` give are from the frozen ones, and d loss / d states.
    fn divergences(&mut self, groups: &[DominantGroup], states_SD: &Tensor, named: impl FnOnce() -> String) -> Result<Option<Tensor>> {
        let reference = self.reference.dominant()?;
        let (mut frozen_SD, mut factors_S, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for group in groups {
            for frozen in info_span!("reference").in_scope(|| reference.pair(group.pair))? {
                let length = frozen.states.len() / reference.hidden_size();
                frozen_SD.extend_from_slice(&frozen.states);
                // Of a sequence the mean counts.
                factors_S.extend(self.scale(group).into_iter().flat_map(|scale| repeat_n(scale / length as f64, length)));
                lengths.push(length);
            }
        }
        let _span = info_span!("head").entered();
        let policy = Predicting { head: self.policy.head(), weight: self.policy.head_weight(), states: states_SD };
        let backward = Backward { factors: &factors_S, weight_gradient: self.policy.head_gradient() };
        let is_wanted = self.backward.gradients.of_retention();
        let (divergences_S, d_states_SD) = divergence(reference.head()?.frozen(&frozen_SD), policy, is_wanted.then_some(backward))?;
        let (found, rows_of) = (Arc::clone(&self.found), rows_of(groups));
        self.calls.call(named, &divergences_S, 0, move |mut divergences_S| {
            let mut mean = |&length: &usize| -> Result<f64> {
                let divergences_M = divergences_S.split_off(..length).context("every state was compared")?;
                Ok(divergences_M.iter().map(|&divergence| f64::from(divergence)).sum::<f64>() / length as f64)
            };
            for (rows, [chosen, rejected]) in rows_of.iter().zip(lengths.as_chunks().0) {
                let values = [mean(chosen)?, mean(rejected)?];
                rows.iter().try_for_each(|&row| note(&found.dominant[row].retention, values))?;
            }
            Ok(Vec::new())
        })?;
        Ok(d_states_SD)
    }
}
