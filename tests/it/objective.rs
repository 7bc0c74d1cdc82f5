//! The whole loss through the whole model: its gradient is its slope, and its terms add up.

use crate::support::*;
use mpo::config::{Gap, GapTarget, Pooling, Reduction, RetentionKind, RunConfig};
use mpo::model::decoder::Decoder;
use mpo::ops;
use mpo::train::step::{Gradients, StepSettings};

/// Every variant of both terms, by name.
fn variants() -> Vec<(String, RunConfig)> {
    let mut base = RunConfig::default();
    base.objective.beta = 1.5;
    base.retention.weight = 0.7;
    let mut variants = Vec::new();
    let mut add = |name: &str, change: &dyn Fn(&mut RunConfig)| {
        let mut config = base.clone();
        change(&mut config);
        variants.push((name.to_owned(), config));
    };
    add("no retention", &|c| c.retention.kind = RetentionKind::None);
    add("sum of log-probabilities", &|c| c.objective.gap = Gap::Sum);
    add("kl", &|c| c.retention.kind = RetentionKind::Kl);
    for pooling in [Pooling::Last, Pooling::LastContent, Pooling::LastPrompt, Pooling::Mean, Pooling::MeanPadded] {
        for reduction in [Reduction::Sum, Reduction::Mean] {
            add(&format!("{pooling:?} {reduction:?}"), &|c| (c.retention.pooling, c.retention.reduction) = (pooling, reduction));
        }
    }
    variants
}

/// Moves every parameter by `step` along `direction`.
fn shift(model: &Decoder, direction: &[Vec<f32>], step: f64) {
    for (parameter, direction) in model.parameters().iter().zip(direction) {
        ops::update(&parameter.value, |values| {
            values.iter_mut().zip(direction).for_each(|(value, &d)| *value = (f64::from(*value) + step * f64::from(d)) as f32);
        })
        .unwrap();
    }
}

/// d loss / d step along `direction` at the model's parameters, by a fourth-order central difference; they are restored.
pub fn slope(model: &Decoder, direction: &[Vec<f32>], step: f64, loss: impl Fn() -> f64) -> f64 {
    let saved: Vec<Vec<f32>> = model.parameters().iter().map(|parameter| ops::read(&parameter.value).unwrap().to_vec()).collect();
    let at = |multiple: f64| {
        shift(model, direction, multiple * step);
        let loss = loss();
        for (parameter, saved) in model.parameters().iter().zip(&saved) {
            ops::update(&parameter.value, |values| values.copy_from_slice(saved)).unwrap();
        }
        loss
    };
    (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * step)
}

pub fn unit(values: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let norm = norm(values) as f32;
    values.iter().map(|values| values.iter().map(|value| value / norm).collect()).collect()
}

fn check_gradient(model: &Decoder, reference: &Decoder, name: &str, config: &RunConfig) {
    let rows = rows(3, 16, 60, 5);
    let (settings, rows_ref) = (StepSettings::new(config, PAD), borrowed(&rows));
    let reference = scores(reference, &rows, config);
    evaluate(model, &rows_ref, &reference, &settings, Gradients::Both);
    let gradient = gradients(model);
    let loss = || evaluate(model, &rows_ref, &reference, &settings, Gradients::None).loss;
    // Along the gradient the slope is its norm. A gradient that is wrong in any part does not point up the steepest.
    let numeric = slope(model, &unit(&gradient), 4e-3, loss);
    assert!((numeric / norm(&gradient) - 1.0).abs() < 1e-3, "{name}: slope {numeric}, norm {}", norm(&gradient));
    // Across it, along the head and embeddings alone and along everything else, the parts have to agree too.
    for embeddings in [true, false] {
        let is_vocabulary = |name: &str| name.contains("embed_tokens") || name.contains("lm_head");
        let part: Vec<Vec<f32>> = model
            .parameters()
            .iter()
            .zip(&gradient)
            .map(|(parameter, gradient)| match is_vocabulary(&parameter.name) == embeddings {
                true => gradient.clone(),
                false => vec![0.0; gradient.len()],
            })
            .collect();
        let numeric = slope(model, &unit(&part), 4e-3, loss);
        assert!((numeric / norm(&part) - 1.0).abs() < 1e-3, "{name}, embeddings {embeddings}: slope {numeric}, norm {}", norm(&part));
    }
}

#[test]
fn the_gradient_is_the_slope_of_the_loss_llama() {
    let (policy, reference) = (model(&llama(32, 60), 1), model(&llama(32, 60), 2));
    for (name, config) in variants() {
        check_gradient(&policy, &reference, &name, &config);
    }
}

#[test]
fn the_gradient_is_the_slope_of_the_loss_gemma() {
    let (policy, reference) = (model(&gemma2(32, 60), 1), model(&gemma2(32, 60), 2));
    // Padding rows whose window holds no token are undefined there.
    for (name, config) in variants().into_iter().filter(|(_, config)| config.retention.pooling != Pooling::MeanPadded) {
        check_gradient(&policy, &reference, &name, &config);
    }
}

#[test]
fn a_policy_gap_target_is_a_constant() {
    let (policy, reference) = (model(&llama(32, 60), 1), model(&llama(32, 60), 2));
    let rows = rows(3, 16, 60, 5);
    let mut config = RunConfig::default();
    config.retention.kind = RetentionKind::None;
    config.objective.gap_target = GapTarget::Policy;
    let settings = StepSettings::new(&config, PAD);
    let outcome = evaluate(&policy, &borrowed(&rows), &scores(&reference, &rows, &config), &settings, Gradients::Both);
    let gradient = gradients(&policy);
    let by_hand: f64 = outcome.rows.iter().map(|row| (row.reward_gap_target.unwrap() - row.goal.unwrap()).powi(2) / 3.0).sum();
    assert_near(outcome.objective, by_hand, 1e-12);

    // With the policy as its own frozen reference the dominant gaps are the same numbers, now constants: so must be the gradient.
    config.objective.gap_target = GapTarget::Reference;
    let settings = StepSettings::new(&config, PAD);
    let frozen = evaluate(&policy, &borrowed(&rows), &scores(&policy, &rows, &config), &settings, Gradients::Both);
    assert_eq!(frozen.objective, outcome.objective);
    assert_eq!(gradients(&policy), gradient);
}

#[test]
fn the_terms_add_up() {
    let (policy, reference) = (model(&llama(32, 60), 1), model(&llama(32, 60), 2));
    let rows = rows(5, 16, 60, 5);
    let mut config = RunConfig::default();
    config.retention.weight = 0.3;
    let settings = StepSettings::new(&config, PAD);
    let reference = scores(&reference, &rows, &config);
    let evaluated = |terms| {
        let outcome = evaluate(&policy, &borrowed(&rows), &reference, &settings, terms);
        (outcome, gradients(&policy))
    };
    let (both, sum) = evaluated(Gradients::Both);
    let (objective_only, objective) = evaluated(Gradients::ObjectiveOnly);
    let (retention_only, retention) = evaluated(Gradients::RetentionOnly);
    let (evaluation, nothing) = evaluated(Gradients::None);
    assert!(both == objective_only && both == retention_only && both == evaluation, "values do not depend on the gradients wanted");
    assert_eq!(norm(&nothing), 0.0);
    let added: Vec<Vec<f32>> = objective.iter().zip(&retention).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect();
    assert!(relative_difference(&added, &sum) < 1e-6);
    assert!(norm(&objective) > 0.0 && norm(&retention) > 0.0);

    assert_near(both.loss, both.objective + 0.3 * both.retention.unwrap(), 1e-12);
    let by_hand: f64 = both.rows.iter().map(|row| (row.reward_gap_target.unwrap() - row.reward_gap_reference.unwrap()).powi(2) / 5.0).sum();
    assert_near(both.objective, by_hand, 1e-12);
    let by_hand: f64 = both.rows.iter().flat_map(|row| row.retention.unwrap()).sum::<f64>() / 10.0;
    assert_near(both.retention.unwrap(), by_hand, 1e-12);
}

#[test]
fn tokens_are_counted_shared_and_unshared() {
    let policy = model(&llama(32, 60), 1);
    let rows = rows(5, 16, 60, 5);
    let mut config = RunConfig::default();
    let count = |config: &RunConfig| {
        let outcome =
            evaluate(&policy, &borrowed(&rows), &scores(&policy, &rows, config), &StepSettings::new(config, PAD), Gradients::None);
        (outcome.n_tokens, outcome.n_tokens_computed)
    };
    let responses = |pair: &mpo::data::encode::EncodedPreference| pair.chosen.tokens.len() + pair.rejected.tokens.len();
    let both_sides = || rows.iter().flat_map(|row| row.pairs());
    let unshared: usize = both_sides().map(|pair| 2 * pair.prompt.len() + responses(pair)).sum();
    let shared: usize = both_sides().map(|pair| pair.prompt.len() + responses(pair)).sum();
    assert_eq!(count(&config), (unshared, shared));
    // Rows 1 and 4 share the dominant pair of row 0.
    config.train.group_by_dominant = true;
    let repeated = rows[0].dominant_pair().unwrap();
    assert_eq!(count(&config), (unshared, shared - 2 * (repeated.prompt.len() + responses(repeated))));
    config.retention.kind = RetentionKind::None;
    let target = |prompts| rows.iter().map(|row| prompts * row.target.prompt.len() + responses(&row.target)).sum::<usize>();
    assert_eq!(count(&config), (target(2), target(1)));
}
