//! What a user asked of `mpo eval`: all that responses follow from. It stands in `run.json`, so that a run goes on without being asked again.

use crate::data::template::Thinking;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What to ask of which model, and how.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Asked {
    /// Benchmarks, by name.
    pub benches: Vec<String>,
    /// A folder, `org/name` or `builtin:tiny`.
    pub model: String,
    pub adapter: Option<PathBuf>,
    /// Another checkpoint, whose reward gaps are measured too.
    pub reference: Option<String>,
    /// All that a benchmark has when empty.
    pub langs: Vec<String>,
    pub limit: Option<usize>,
    pub seed: u64,
    pub data: Option<PathBuf>,
    pub jailbreak: Option<PathBuf>,
    /// The benchmark's own when absent.
    pub max_new_tokens: Option<usize>,
    /// The item's own, else greedy, when absent.
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    /// Whether the model is asked to think before it answers; as its chat template has it when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<Thinking>,
    /// Answers for each prompt.
    pub n_samples: u32,
    /// Where template, compute type and device come from.
    pub config: Option<String>,
    pub set: Vec<String>,
    pub judge: AskedJudge,
}

/// Who judges, and how. A key is no part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AskedJudge {
    /// `openai:MODEL`, `guard:DIR` or `keyword`; nobody when absent.
    pub judge: Option<String>,
    pub url: Option<String>,
    /// `openai:MODEL`.
    pub translator: Option<String>,
    pub guard_format: Option<String>,
    /// In the place of the benchmark's own.
    pub rubric: Option<String>,
    /// Of a reply; [`MAX_TOKENS`](super::judge::parameters::MAX_TOKENS) when absent.
    pub max_tokens: Option<usize>,
    pub allow_uncovered: bool,
    pub allow_own: bool,
}

impl AskedJudge {
    /// The judge of a run that goes on: the one it has, whether it is named again or not; where it has none, the one that is named now.
    ///
    /// # Errors
    /// Another judge is named, or this one asked in another way: a run's verdicts would be those of two.
    pub fn resumed(&self, named: &Self, folder: &Path) -> Result<Self> {
        if self.judge.is_none() {
            return Ok(named.clone());
        }
        let options = |of: &Self| {
            [
                ("--judge", of.judge.clone()),
                ("--judge-url", of.url.clone()),
                ("--judge-translate", of.translator.clone()),
                ("--guard-format", of.guard_format.clone()),
                ("--rubric", of.rubric.clone()),
                ("--judge-max-tokens", of.max_tokens.map(|n| n.to_string())),
            ]
        };
        for ((option, own), (_, named)) in options(self).into_iter().zip(options(named)) {
            let of =
                |value: &Option<String>| value.as_deref().map_or_else(|| format!("no {option}"), |value| format!("`{option} {value}`"));
            ensure!(
                named.is_none() || named == own,
                "the run in `{0}` is judged with {1}, and `--resume` goes on with that; not with {2}\n\
                 hint: leave the judge out to go on; `mpo eval judge {0} --judge …` has the same responses judged by another one too",
                folder.display(),
                of(&own),
                of(&named)
            );
        }
        let (allow_uncovered, allow_own) = (self.allow_uncovered || named.allow_uncovered, self.allow_own || named.allow_own);
        Ok(Self { allow_uncovered, allow_own, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(judge: &str, url: Option<&str>) -> AskedJudge {
        AskedJudge { judge: Some(judge.into()), url: url.map(Into::into), ..AskedJudge::default() }
    }

    #[test]
    fn a_run_keeps_its_judge() {
        let folder = Path::new("evals/one");
        let (own, nobody) = (judge("openai:a", Some("http://localhost:1/v1")), AskedJudge::default());
        for named in [&nobody, &own, &judge("openai:a", None)] {
            assert_eq!(own.resumed(named, folder).unwrap(), own);
        }
        assert_eq!(nobody.resumed(&own, folder).unwrap(), own, "a run without one takes the one that is named");
        let insisting = AskedJudge { allow_uncovered: true, ..AskedJudge::default() };
        assert_eq!(own.resumed(&insisting, folder).unwrap(), AskedJudge { allow_uncovered: true, ..own.clone() });
        let strict = AskedJudge { rubric: Some("strongreject".into()), ..AskedJudge::default() };
        for (named, option) in [
            (judge("openai:b", None), "`--judge openai:a`"),
            (judge("openai:a", Some("http://localhost:2/v1")), "`--judge-url http://localhost:1/v1`"),
            (strict, "no --rubric"),
        ] {
            let error = own.resumed(&named, folder).unwrap_err().to_string();
            assert!(error.contains(option) && error.contains("mpo eval judge evals/one"), "{error}");
        }
    }
}
