//! Numbers that a run's files may hold: a share of 1.2 was not measured by anybody, and would be averaged all the same.

use super::facts::{BenchFacts, RunFacts};
use super::metric::Scale;
use crate::eval::contamination::Contamination;
use crate::eval::record::{Response, Verdict};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;

/// # Errors
/// A metric's value outside its scale; a value where nothing could be read.
pub(super) fn verdict(verdict: &Verdict, facts: &BenchFacts) -> Result<()> {
    for (key, &value) in &verdict.metrics {
        let of = match facts.metric(key).scale {
            Scale::Share | Scale::Score => Some(("a share", 0.0, 1.0)),
            Scale::Rating { low, high } => Some(("a rating", low, high)),
            Scale::Number => None,
        };
        let is_within = of.is_none_or(|(_, low, high)| (low..=high).contains(&value));
        let (what, low, high) = of.unwrap_or(("a number", f64::MIN, f64::MAX));
        ensure!(is_within && value.is_finite(), "`{key}` of prompt `{}` is {value}: {what} lies between {low} and {high}", verdict.key.id);
    }
    Ok(())
}

/// # Errors
/// A log-probability that is none.
pub(super) fn response(response: &Response) -> Result<()> {
    for value in &response.choice_log_probs {
        // Rounding may leave a sum of probabilities a little above 1.
        ensure!(value.is_finite() && *value <= 1e-3, "prompt `{}` has the log-probability {value}: none is above 0", response.key.id);
    }
    Ok(())
}

/// # Errors
/// Times, sizes and scales that nothing has.
pub(super) fn facts(facts: &RunFacts) -> Result<()> {
    for (key, value) in [("date", facts.date), ("seconds", facts.seconds)] {
        ensure!(value.is_finite() && value >= 0.0, "`{key}` is {value}: it must be 0 or more");
    }
    for (name, bench) in &facts.benches {
        for (key, metric) in &bench.metrics {
            let Scale::Rating { low, high } = metric.scale else { continue };
            ensure!(low.is_finite() && high.is_finite() && low < high, "`{key}` of `{name}` is a rating from {low} to {high}");
        }
    }
    Ok(())
}

/// # Errors
/// A likeness that is no share, and more matches than prompts they could be of.
pub(super) fn contamination(found: &BTreeMap<String, Contamination>) -> Result<()> {
    let check = |found: &Contamination| -> Result<()> {
        for one in &found.matches {
            ensure!(
                (0.0..=1.0).contains(&one.similarity),
                "prompt `{}` is alike by {}: a share lies between 0 and 1",
                one.id,
                one.similarity
            );
        }
        ensure!(found.n_training > 0 || found.matches.is_empty(), "there are {} matches among no training prompts", found.matches.len());
        Ok(())
    };
    found.iter().try_for_each(|(bench, found)| check(found).with_context(|| format!("in `{bench}`")))
}

#[cfg(test)]
mod tests {
    use super::super::metric::{Better, Metric};
    use super::*;
    use serde_json::json;

    fn read(metrics: serde_json::Value) -> Verdict {
        serde_json::from_value(json!({"bench": "b", "lang": "sw", "id": "7", "label": "safe", "metrics": metrics})).unwrap()
    }

    #[test]
    fn a_value_lies_on_its_metric_s_scale() {
        let facts = BenchFacts::default();
        for fine in [json!({"asr": 0.0, "acc": 1, "rating": 10}), json!({"reward_gap": -3.5, "latency": 1e9}), json!({})] {
            verdict(&read(fine), &facts).unwrap();
        }
        for (metrics, said) in [
            (json!({"asr": 1.2}), "`asr` of prompt `7` is 1.2: a share lies between 0 and 1"),
            (json!({"asr": -0.1}), "is -0.1"),
            (json!({"rating": 11}), "a rating lies between 1 and 10"),
            (json!({"exact_match,strict-match": 2}), "`exact_match,strict-match`"),
        ] {
            let error = verdict(&read(metrics), &facts).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let scale = Metric { scale: Scale::Rating { low: 0.0, high: 4.0 }, better: Better::Higher, ..Metric::known("rating") };
        let facts = BenchFacts { metrics: [("rating".to_owned(), scale)].into(), ..BenchFacts::default() };
        assert!(verdict(&read(json!({"rating": 5})), &facts).is_err() && verdict(&read(json!({"rating": 0})), &facts).is_ok());
    }
}
