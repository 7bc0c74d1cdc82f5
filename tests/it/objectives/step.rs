//! Every loss through the whole model: its gradient is its slope, no cut of a batch changes it, and no pass is made that it does not read.

use crate::objective::{slope, unit};
use crate::support::*;
use anyhow::Result;
use mpo::config::{Gap, ObjectiveConfig, ObjectiveKind, RetentionKind, RunConfig};
use mpo::data::encode::{EncodedPreference, EncodedRow, Response};
use mpo::data::mismatch;
use mpo::model::decoder::Decoder;
use mpo::objective::{BatchTotals, Loss, Objective, Passes, Reported, RowLoss, RowScores};
use mpo::reference::Columns;
use mpo::train::step::{Gradients, StepSettings, batch_totals, evaluate_batch, evaluate_part, passes};

const VOCABULARY: usize = 60;

fn config(kind: ObjectiveKind, retention: RetentionKind) -> RunConfig {
    let mut config = RunConfig { objective: ObjectiveConfig::of(kind), ..RunConfig::default() };
    config.retention.kind = retention;
    config.retention.weight = 0.5;
    config
}

/// Rows with mismatched answers, whether the loss reads them or not.
fn some_rows(n: usize) -> Vec<EncodedRow> {
    let mut rows = rows(n, 16, VOCABULARY, 5);
    mismatch::assign(&mut rows, &[], 512).unwrap();
    rows
}

fn models() -> (Decoder, Decoder) {
    (model(&llama(32, VOCABULARY), 1), model(&llama(32, VOCABULARY), 2))
}

#[test]
fn the_gradient_is_the_slope_of_every_loss() {
    let (policy, reference) = models();
    let rows = some_rows(3);
    let rows_ref = borrowed(&rows);
    for kind in ObjectiveKind::ALL {
        for retention in [RetentionKind::None, RetentionKind::Hidden] {
            let config = config(kind, retention);
            let (settings, reference) = (StepSettings::new(&config, PAD), scores(&reference, &rows, &config));
            // What the loss is told of the batch has no gradient: it stays as it is.
            let totals = batch_totals(&policy, &rows_ref, &reference, &settings).unwrap().totals;
            evaluate(&policy, &rows_ref, &reference, &settings, Gradients::Both);
            let gradient = gradients(&policy);
            let loss = || evaluate_part(&policy, &rows_ref, &totals, &reference, &settings, Gradients::None).unwrap().loss;
            let numeric = slope(&policy, &unit(&gradient), 2e-3, loss);
            assert!((numeric / norm(&gradient) - 1.0).abs() < 2e-3, "{kind:?} {retention:?}: slope {numeric}, norm {}", norm(&gradient));
        }
    }
}

#[test]
fn no_cut_of_a_batch_changes_loss_or_gradient() {
    let (policy, reference) = models();
    let rows = some_rows(5);
    for kind in ObjectiveKind::ALL {
        for retention in [RetentionKind::None, RetentionKind::Hidden] {
            let mut config = config(kind, retention);
            let reference = scores(&reference, &rows, &config);
            let mut of_size = |micro_batch_size: usize| {
                config.train.micro_batch_size = micro_batch_size;
                let outcome = evaluate(&policy, &borrowed(&rows), &reference, &StepSettings::new(&config, PAD), Gradients::Both);
                (outcome, gradients(&policy))
            };
            let (whole, gradient) = of_size(5);
            for micro_batch_size in 1..5 {
                let (cut, of_cut) = of_size(micro_batch_size);
                assert!((cut.loss - whole.loss).abs() <= 1e-6 * whole.loss.abs(), "{kind:?}: {} is not {}", cut.loss, whole.loss);
                assert!(relative_difference(&of_cut, &gradient) < 1e-5, "{kind:?} in cuts of {micro_batch_size}");
            }
        }
    }
}

/// Tokens of a prompt and the given answers, the prompt once.
fn packed(pair: &EncodedPreference, responses: &[&Response]) -> usize {
    pair.prompt.len() + responses.iter().map(|response| response.tokens.len()).sum::<usize>()
}

#[test]
fn no_pass_is_made_that_the_loss_does_not_read() {
    let (policy, reference) = models();
    let rows = some_rows(5);
    let both = |pair: &EncodedPreference| packed(pair, &[&pair.chosen, &pair.rejected]);
    let sum = |of: &dyn Fn(&EncodedRow) -> usize| rows.iter().map(of).sum::<usize>();
    let targets = sum(&|row| both(&row.target));
    let chosen = sum(&|row| packed(&row.target, &[&row.target.chosen]));
    let dominant = sum(&|row| both(row.dominant.as_ref().unwrap()));
    let mismatched = sum(&|row| both(row.mismatched.as_ref().unwrap()));
    for kind in ObjectiveKind::ALL {
        let expected = match kind {
            ObjectiveKind::Sft => chosen,
            ObjectiveKind::Kto => targets + mismatched,
            _ => targets,
        };
        for (retention, more) in [(RetentionKind::None, 0), (RetentionKind::Hidden, dominant)] {
            let config = config(kind, retention);
            let (settings, reference) = (StepSettings::new(&config, PAD), scores(&reference, &rows, &config));
            let reads_target = matches!(
                kind,
                ObjectiveKind::Dpo | ObjectiveKind::Ipo | ObjectiveKind::RobustDpo | ObjectiveKind::RDpo | ObjectiveKind::Kto
            );
            let columns = (reference.dominant.is_some(), reference.target.is_some());
            assert_eq!(columns, (kind == ObjectiveKind::Mpo || retention != RetentionKind::None, reads_target), "{kind:?}");
            let outcome = evaluate(&policy, &borrowed(&rows), &reference, &settings, Gradients::Both);
            assert_eq!(outcome.n_tokens_computed, expected + more, "{kind:?} {retention:?}");
            let planned = passes(&borrowed(&rows), &settings, Gradients::Both, policy.description());
            assert_eq!(planned.iter().map(|pass| pass.n_tokens).sum::<usize>(), outcome.n_tokens_computed, "{kind:?}: what is planned");
        }
    }
}

#[test]
fn what_a_loss_needs_and_does_not_get_is_an_error() {
    let (policy, _) = models();
    let rows = some_rows(3);
    let error = |kind, rows: &[EncodedRow]| {
        let config = config(kind, RetentionKind::None);
        let settings = StepSettings::new(&config, PAD);
        let result = evaluate_batch(&policy, &borrowed(rows), &Columns::default(), &settings, Gradients::None);
        format!("{:#}", result.unwrap_err())
    };
    assert!(error(ObjectiveKind::Dpo, &rows).contains("scores of the target pairs are needed"));
    assert!(error(ObjectiveKind::Mpo, &rows).contains("scores of the dominant pair"));
    let bare = crate::support::rows(3, 16, VOCABULARY, 5);
    assert!(error(ObjectiveKind::Kto, &bare).contains("row `0` has no mismatched answers"));
}

/// While the policy is its own reference every log-ratio is exactly 0, and so is KTO's z.
#[test]
fn step_0_has_the_loss_of_even_odds() {
    let (policy, _) = models();
    let rows = some_rows(4);
    for (kind, expected) in [(ObjectiveKind::Dpo, 2f64.ln()), (ObjectiveKind::Kto, 0.5), (ObjectiveKind::Ipo, 25.0)] {
        let config = config(kind, RetentionKind::None);
        let reference = scores(&policy, &rows, &config);
        let outcome = evaluate(&policy, &borrowed(&rows), &reference, &StepSettings::new(&config, PAD), Gradients::None);
        assert!((outcome.loss - expected).abs() < 1e-14 * expected, "{kind:?}: {}", outcome.loss);
        assert_eq!(outcome.totals.mismatched_log_ratio, 0.0);
        let margins: Vec<f64> = outcome.rows.iter().map(|row| row.rewards.unwrap().margin().unwrap()).collect();
        assert_eq!(margins, [0.0; 4], "{kind:?}");
    }
}

/// z is the mean over the whole batch, whatever is trained on: computed here once more, one answer at a time.
#[test]
fn z_is_the_mean_over_the_mismatched_answers_of_the_batch() {
    let (policy, reference) = models();
    let rows = some_rows(5);
    let config = config(ObjectiveKind::Kto, RetentionKind::None);
    let settings = StepSettings::new(&config, PAD);
    let columns = scores(&reference, &rows, &config);
    let frozen = scores(&policy, &rows, &config);
    let mut sum = 0.0;
    for row in &rows {
        let pair = row.mismatched.as_ref().unwrap();
        let of = |columns: &Columns| columns.target().unwrap().pair_scores(pair).unwrap();
        let (policy, reference) = (of(&frozen), of(&columns));
        sum += policy.chosen.log_prob - reference.chosen.log_prob + policy.rejected.log_prob - reference.rejected.log_prob;
    }
    let found = batch_totals(&policy, &borrowed(&rows), &columns, &settings).unwrap().totals.mismatched_log_ratio;
    assert!((found - sum / 10.0).abs() < 1e-9, "{found} is not {}", sum / 10.0);
    assert!(found.abs() > 1e-3);
}

#[test]
fn a_row_of_a_label_file_has_one_answer() {
    let (policy, reference) = models();
    let config = config(ObjectiveKind::Kto, RetentionKind::None);
    let pairs = some_rows(3);
    // The same answers, each in a row of its own.
    let mut labels: Vec<EncodedRow> = pairs.iter().flat_map(|row| [row.clone(), row.clone()]).collect();
    for (index, row) in labels.iter_mut().enumerate() {
        for pair in [&mut row.target, row.mismatched.as_mut().unwrap()] {
            if index % 2 == 0 { pair.rejected = Response::default() } else { pair.chosen = Response::default() }
        }
    }
    let of = |rows: &[EncodedRow]| {
        let columns = scores(&reference, rows, &config);
        let outcome = evaluate(&policy, &borrowed(rows), &columns, &StepSettings::new(&config, PAD), Gradients::Both);
        (outcome.loss, gradients(&policy))
    };
    let ((paired, gradient), (labelled, of_labels)) = (of(&pairs), of(&labels));
    assert!((paired - labelled).abs() < 1e-9, "{paired} is not {labelled}");
    assert!(relative_difference(&of_labels, &gradient) < 1e-5);
}

/// A loss that is in no file of the crate: the squared distance of the chosen answer's log-probability a token from -1.
#[derive(Debug)]
struct Toy;

impl Loss for Toy {
    fn passes(&self) -> Passes {
        Passes::POLICY_PAIR
    }

    fn row(&self, scores: &RowScores, totals: &BatchTotals) -> Result<RowLoss> {
        let (chosen, n_rows) = (scores.policy_target.chosen, totals.n_rows as f64);
        let distance = chosen.per_token() + 1.0;
        let d_chosen = 2.0 * distance / n_rows * chosen.slope(Gap::LengthNormalized);
        Ok(RowLoss { share: distance * distance / n_rows, d_chosen, d_rejected: 0.0 })
    }

    fn reported(&self) -> Reported {
        Reported { log_prob: Gap::LengthNormalized, beta: None }
    }
}

/// What the README's "Add a loss" asks for is enough: the engine takes any [`Loss`], and needs no line about it.
#[test]
fn a_new_loss_is_one_file_and_one_match_arm() {
    let (policy, _) = models();
    let rows = some_rows(3);
    let config = config(ObjectiveKind::Sft, RetentionKind::None);
    let settings = StepSettings { objective: Objective::from(Toy), ..StepSettings::new(&config, PAD) };
    let (rows, columns) = (borrowed(&rows), Columns::default());
    let outcome = evaluate(&policy, &rows, &columns, &settings, Gradients::Both);
    let by_hand: f64 = outcome.rows.iter().map(|row| (row.target.chosen.per_token() + 1.0).powi(2) / 3.0).sum();
    assert_near(outcome.objective, by_hand, 1e-12);
    let gradient = gradients(&policy);
    let loss = || evaluate_batch(&policy, &rows, &columns, &settings, Gradients::None).unwrap().loss;
    let numeric = slope(&policy, &unit(&gradient), 2e-3, loss);
    assert!((numeric / norm(&gradient) - 1.0).abs() < 2e-3, "slope {numeric}, norm {}", norm(&gradient));
}
