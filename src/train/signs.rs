//! Failure signs: numbers that look like success or like nothing, and are neither.
//!
//! Each is said once on the console and stands in the summary. What has been said, and the sums that a sign is judged by, are part of the
//! checkpoint, so that a resumed run says neither less nor more. Thresholds are `[signs]` of the configuration.

use super::measure::{Means, Measurement};
use crate::config::SignsConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Retention may grow by this factor from one quarter of the run to the next without being called a sign.
const RETENTION_GROWTH: f64 = 1.5;
/// Retention that makes up less of the loss than this is too small to matter.
const RETENTION_SHARE: f64 = 0.1;
const N_QUARTERS: usize = 4;
/// A run of fewer steps says nothing of what a base model can learn: half of it is warm-up.
const ENOUGH_STEPS: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignKind {
    /// The reference prefers the rejected answer on many dominant pairs.
    BadSupervision,
    /// Rows that already have a larger gap than the loss asks for: for a loss with a goal, as MPO has.
    Overshoot,
    /// A gap that grew while the chosen answer became less likely.
    Displacement,
    /// A language whose gap does not close.
    Stagnation,
    /// The dominant language drifts while the objective falls.
    RetentionGrows,
    /// One term's gradient is far larger than the other's.
    GradientImbalance,
    /// Benign prompts of a language are refused that were answered.
    OverRefusal,
    /// Benign prompts of a language are answered in another.
    OtherLanguage,
    /// Answers to benign prompts are empty, or loops.
    Degeneration,
    /// Answers became like neither of two known ones.
    BrokenLanguage,
    /// Answers became like the bad one of two known ones.
    MoreRejected,
    /// Answers to benign prompts became less likely.
    Forgetting,
    /// The dominant language's next-token distributions are not what they were.
    DominantDrift,
}

/// A sign that was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sign {
    pub kind: SignKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lang: Option<String>,
    /// Steps taken when it was seen.
    pub step: usize,
    pub value: f64,
    pub threshold: f64,
    /// What was seen and what it means, for people.
    pub message: String,
}

/// Sums over the steps of a quarter of the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Quarter {
    n_steps: usize,
    objective: f64,
    retention: f64,
}

/// The signs of a run so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Signs {
    pub found: Vec<Sign>,
    /// Share of the dominant pairs on which the reference prefers the rejected answer.
    pub bad_supervision: f64,
    quarters: [Quarter; N_QUARTERS],
}

/// Where in the run something was measured.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    /// Steps taken.
    pub step: usize,
    /// Steps of the whole run.
    pub n_steps: usize,
}

/// What became of one language since the first step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trend {
    /// By how much its reward gap grew.
    pub grew: f64,
    /// By how much the chosen answer's mean log-probability of a token fell, nats.
    pub fell: f64,
    /// How much of the way to what the loss asks for is done; `None` for a language that was there from the start.
    pub closed: Option<f64>,
}

/// The trend of every language that was measured both times, on the same rows.
pub fn trends(start: &Measurement, now: &Measurement) -> BTreeMap<String, Trend> {
    let both = start.languages.iter().filter_map(|(lang, before)| Some((lang, before, now.languages.get(lang)?)));
    let trend = |before: &Means, after: &Means| {
        let grew = after.reward_gap_target - before.reward_gap_target;
        let distance = before.goal - before.reward_gap_target;
        let closed = (distance > 0.0).then_some(grew / distance);
        Trend { grew, fell: before.chosen_per_token - after.chosen_per_token, closed }
    };
    both.map(|(lang, before, after)| (lang.clone(), trend(before, after))).collect()
}

impl Signs {
    /// `gaps` are the reference's reward gaps of the distinct dominant pairs, of which `least` (`data.min_dominant_gap`) may drop some.
    pub fn judge_supervision(&mut self, thresholds: &SignsConfig, gaps: &[f64], least: Option<f64>) {
        let n_bad = gaps.iter().filter(|gap| **gap < 0.0).count();
        let value = n_bad as f64 / gaps.len().max(1) as f64;
        self.bad_supervision = value;
        if value > thresholds.bad_supervision_share {
            let then = match least.filter(|least| *least >= 0.0) {
                Some(least) => format!("`data.min_dominant_gap` = {least} drops them"),
                None => "MPO would teach this to every target language (`data.min_dominant_gap = 0` drops them)".into(),
            };
            let message = format!("{n_bad} of {} dominant pairs: the reference prefers the unsafe answer; {then}", gaps.len());
            self.note(Sign {
                kind: SignKind::BadSupervision,
                lang: None,
                step: 0,
                value,
                threshold: thresholds.bad_supervision_share,
                message,
            });
        }
    }

    /// `start` was measured before the first step.
    pub fn judge_start(&mut self, thresholds: &SignsConfig, start: &Measurement) {
        let value = start.all.overshoot;
        if value > thresholds.overshoot_share {
            let message = format!(
                "{} of the rows have a larger gap than the dominant language asks of them (beta RG_t > RG_d): MPO will lower their margin",
                percent(value)
            );
            self.note(Sign { kind: SignKind::Overshoot, lang: None, step: 0, value, threshold: thresholds.overshoot_share, message });
        }
    }

    /// `start` and `now` were measured on the same rows.
    pub fn judge_languages(&mut self, thresholds: &SignsConfig, at: Position, start: &Measurement, now: &Measurement) {
        let share_of_run = at.step as f64 / at.n_steps as f64;
        for (lang, trend) in trends(start, now) {
            let Trend { grew, fell, closed } = trend;
            if grew > 0.0 && fell > thresholds.displacement_nats {
                let message = format!(
                    "{lang}: the gap grew {grew:.2} only because the rejected answer became less likely; the safe answer fell {fell:.2} nats \
                     a token since step 0: generate before trusting the gap"
                );
                let threshold = thresholds.displacement_nats;
                self.note(Sign { kind: SignKind::Displacement, lang: Some(lang.clone()), step: at.step, value: fell, threshold, message });
            }
            let Some(closed) = closed else { continue };
            if at.n_steps >= ENOUGH_STEPS && share_of_run >= thresholds.stagnation_after && closed < thresholds.stagnation_closed {
                let message = format!(
                    "{lang}: {} of the gap closed after {} of the steps: the base model may be too weak in this language",
                    percent(closed),
                    percent(share_of_run)
                );
                let threshold = thresholds.stagnation_closed;
                self.note(Sign { kind: SignKind::Stagnation, lang: Some(lang), step: at.step, value: closed, threshold, message });
            }
        }
    }

    /// The objective and the weighted `retention` of the step that was just taken. Judged when a quarter of the run is over, from the third on: the
    /// first always grows, because retention starts at exactly 0.
    pub fn judge_step(&mut self, at: Position, objective: f64, retention: f64) {
        let index = ((at.step - 1) * N_QUARTERS / at.n_steps).min(N_QUARTERS - 1);
        let quarter = &mut self.quarters[index];
        if objective.is_finite() && retention.is_finite() {
            quarter.n_steps += 1;
            quarter.objective += objective;
            quarter.retention += retention;
        }
        let is_over = at.step * N_QUARTERS / at.n_steps > index;
        if !is_over || index < 2 || at.n_steps < 2 * N_QUARTERS {
            return;
        }
        let [before, now] = [index - 1, index].map(|i| {
            let Quarter { n_steps, objective, retention } = self.quarters[i];
            (objective / n_steps as f64, retention / n_steps as f64)
        });
        let growth = now.1 / before.1;
        if growth > RETENTION_GROWTH && now.0 < before.0 && now.1 > RETENTION_SHARE * (now.0 + now.1) {
            let message = format!(
                "retention (weighted) grew from {:.3} to {:.3} between two quarters of the run while the objective fell from {:.3} to {:.3}: the \
                 dominant language pays for it; raise `retention.weight` or lower `optimizer.lr`",
                before.1, now.1, before.0, now.0
            );
            let sign =
                Sign { kind: SignKind::RetentionGrows, lang: None, step: at.step, value: growth, threshold: RETENTION_GROWTH, message };
            self.note(sign);
        }
    }

    /// Gradient norms of the two terms, retention's weight included, on one of the first steps after the policy moved.
    pub fn judge_gradients(&mut self, thresholds: &SignsConfig, step: usize, objective: f64, retention: f64) {
        let (value, loud, quiet) = match retention > objective {
            true => (retention / objective, "retention", "the objective"),
            false => (objective / retention, "the objective", "retention"),
        };
        if value.is_finite() && value > thresholds.gradient_ratio {
            let message = format!(
                "step {step}: the gradient norm of the objective is {objective:.3e}, of the weighted retention {retention:.3e}: {loud} drowns {quiet}; \
                 `retention.weight` and `retention.reduction` set the balance"
            );
            let threshold = thresholds.gradient_ratio;
            self.note(Sign { kind: SignKind::GradientImbalance, lang: None, step, value, threshold, message });
        }
    }

    /// Keeps a sign unless the same one was seen before. A value that is not finite says that a loss was not, which has its own words; JSON,
    /// and so the checkpoint, has no number for it.
    pub(super) fn note(&mut self, sign: Sign) {
        if sign.value.is_finite() && !self.found.iter().any(|known| (known.kind, &known.lang) == (sign.kind, &sign.lang)) {
            self.found.push(sign);
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::measure::{Losses, RowMeasure};

    const HALF: Position = Position { step: 50, n_steps: 100 };

    fn measured(gap: f64, chosen_per_token: f64) -> Measurement {
        let row = RowMeasure { chosen_per_token: Some(chosen_per_token), ..RowMeasure::with_gap("sw", gap, 1.0) };
        Measurement::new(Losses { loss: 1.0, objective: 1.0, retention: 0.0 }, &[row])
    }

    fn kinds(signs: &Signs) -> Vec<SignKind> {
        signs.found.iter().map(|sign| sign.kind).collect()
    }

    #[test]
    fn bad_supervision_counts_pairs() {
        let mut signs = Signs::default();
        signs.judge_supervision(&SignsConfig::default(), &[1.0, 0.5, -0.1, 0.2, -3.0], None);
        assert_eq!(kinds(&signs), [SignKind::BadSupervision]);
        assert!(signs.found[0].message.starts_with("2 of 5 dominant pairs") && signs.found[0].message.contains("would teach this"));
        let mut dropped = Signs::default();
        dropped.judge_supervision(&SignsConfig::default(), &[-1.0], Some(0.25));
        assert!(dropped.found[0].message.ends_with("`data.min_dominant_gap` = 0.25 drops them"), "{}", dropped.found[0].message);
        let mut fine = Signs::default();
        fine.judge_supervision(&SignsConfig::default(), &[1.0; 10], None);
        assert!(fine.found.is_empty());
    }

    #[test]
    fn overshoot_is_judged_before_the_first_step() {
        let mut signs = Signs::default();
        signs.judge_start(&SignsConfig::default(), &measured(0.9, -1.0));
        assert!(signs.found.is_empty());
        signs.judge_start(&SignsConfig::default(), &measured(1.1, -1.0));
        assert_eq!(kinds(&signs), [SignKind::Overshoot]);
    }

    #[test]
    fn a_gap_that_grows_by_a_falling_rejected_answer_is_displacement() {
        let mut signs = Signs::default();
        signs.judge_languages(&SignsConfig::default(), HALF, &measured(0.1, -1.0), &measured(0.72, -1.41));
        assert_eq!(kinds(&signs), [SignKind::Displacement]);
        assert!(signs.found[0].message.starts_with("sw: the gap grew 0.62 only because"), "{}", signs.found[0].message);
        assert!(signs.found[0].message.contains("fell 0.41 nats"));
        let mut healthy = Signs::default();
        healthy.judge_languages(&SignsConfig::default(), HALF, &measured(0.1, -1.0), &measured(0.72, -1.1));
        assert!(healthy.found.is_empty());
    }

    #[test]
    fn stagnation_waits_for_its_share_of_the_run_and_is_said_once() {
        let thresholds = SignsConfig::default();
        let mut signs = Signs::default();
        let mut judge =
            |step| signs.judge_languages(&thresholds, Position { step, n_steps: 100 }, &measured(0.0, -1.0), &measured(0.01, -1.0));
        judge(24);
        judge(25);
        judge(100);
        assert_eq!(kinds(&signs), [SignKind::Stagnation]);
        assert_eq!(
            signs.found[0].message,
            "sw: 1 % of the gap closed after 25 % of the steps: the base model may be too weak in this language"
        );
        let mut short = Signs::default();
        short.judge_languages(&thresholds, Position { step: 10, n_steps: 10 }, &measured(0.0, -1.0), &measured(0.01, -1.0));
        assert!(short.found.is_empty(), "ten steps say nothing of the base model: {:?}", short.found);
        let mut at_target = Signs::default();
        at_target.judge_languages(&thresholds, HALF, &measured(1.2, -1.0), &measured(1.2, -1.0));
        assert!(at_target.found.is_empty(), "a language that is where it should be does not stagnate");
    }

    #[test]
    fn retention_that_grows_while_the_gap_term_falls_is_a_sign() {
        let run = |retention: &dyn Fn(usize) -> f64, objective: &dyn Fn(usize) -> f64| {
            let mut signs = Signs::default();
            for step in 1..=40 {
                signs.judge_step(Position { step, n_steps: 40 }, objective(step), retention(step));
            }
            signs.found
        };
        let falling = |step: usize| 1.0 / step as f64;
        let found = run(&|step| 0.001 * (step * step) as f64, &falling);
        assert_eq!((found.len(), found[0].kind, found[0].step), (1, SignKind::RetentionGrows, 30));
        assert!(run(&|_| 0.5, &falling).is_empty(), "steady retention");
        assert!(run(&|step| if step <= 20 { 0.0 } else { 0.5 }, &falling).iter().all(|sign| sign.value.is_finite()), "from nothing");
        assert!(run(&|step| 1e-9 * (step * step) as f64, &falling).is_empty(), "too small to matter");
        assert!(run(&|step| 0.001 * (step * step) as f64, &|_| 1.0).is_empty(), "the objective does not fall");
    }

    #[test]
    fn gradients_may_differ_thirtyfold() {
        let mut signs = Signs::default();
        signs.judge_gradients(&SignsConfig::default(), 2, 1.0, 29.0);
        signs.judge_gradients(&SignsConfig::default(), 2, 1.0, 0.0);
        assert!(signs.found.is_empty(), "a retention gradient of exactly 0 says that the policy has not moved");
        signs.judge_gradients(&SignsConfig::default(), 3, 1.0, 31.0);
        assert!(signs.found[0].message.contains("retention drowns the objective"), "{}", signs.found[0].message);
    }

    #[test]
    fn a_trend_is_measured_against_the_goal() {
        let measured = |gap: f64, goal: Option<f64>| {
            let row = RowMeasure { goal, ..RowMeasure::with_gap("sw", gap, 2.0) };
            Measurement::new(Losses { loss: 1.0, objective: 1.0, retention: 0.0 }, &[row])
        };
        assert_eq!(trends(&measured(0.0, Some(2.0)), &measured(0.5, Some(2.0)))["sw"].closed, Some(0.25));
        // A loss without a goal neither closes anything nor stagnates, but its chosen answers may fall.
        assert_eq!(trends(&measured(0.0, None), &measured(0.5, None))["sw"].closed, None);
        let mut signs = Signs::default();
        signs.judge_start(&SignsConfig::default(), &measured(9.0, None));
        signs.judge_languages(&SignsConfig::default(), HALF, &measured(0.0, None), &measured(0.0, None));
        assert!(signs.found.is_empty(), "{:?}", signs.found);
    }

    #[test]
    fn what_is_not_finite_is_no_sign_and_survives_a_checkpoint() {
        let thresholds = SignsConfig::default();
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut signs = Signs::default();
            signs.judge_supervision(&thresholds, &[bad], None);
            signs.judge_start(&thresholds, &measured(bad, bad));
            signs.judge_gradients(&thresholds, 1, bad, 1.0);
            signs.judge_gradients(&thresholds, 1, 1.0, bad);
            for (before, after) in [(0.0, bad), (bad, 0.0)] {
                signs.judge_languages(&thresholds, HALF, &measured(before, before), &measured(after, after));
            }
            (1..=8).for_each(|step| signs.judge_step(Position { step, n_steps: 8 }, bad, bad));
            let json = serde_json::to_string(&signs).unwrap();
            assert!(!json.contains("\":null"), "{json}");
            assert_eq!(serde_json::from_str::<Signs>(&json).unwrap(), signs);
        }
    }

    #[test]
    fn signs_survive_a_checkpoint() {
        let mut signs = Signs::default();
        signs.judge_start(&SignsConfig::default(), &measured(1.1, -1.0));
        signs.judge_step(HALF, 0.1, 0.7);
        let json = serde_json::to_string(&signs).unwrap();
        assert_eq!(serde_json::from_str::<Signs>(&json).unwrap(), signs);
    }
}
