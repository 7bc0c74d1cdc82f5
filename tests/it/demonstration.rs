//! The first minute: the recipe that comes with the program makes careless answers rare in every language and breaks none.

use crate::train::Sandbox;
use serde_json::Value;

/// Everything that is wrong with the demonstration, going by its summary.
fn problems(summary: &Value) -> Vec<String> {
    let measure = |when: &str, lang: &str, key: &str| {
        summary["canaries"][when]["languages"][lang]["pairs"][key].as_u64().unwrap_or_else(|| panic!("{when} {lang} {key}: {summary}"))
    };
    let mut problems = Vec::new();
    let (mut before, mut after, mut n) = (0, 0, 0);
    for lang in ["ar", "bn", "ja", "ko", "sw", "zh"] {
        before += measure("before", lang, "n_rejected");
        after += measure("after", lang, "n_rejected");
        n += measure("after", lang, "n_questions");
        let (was, is) = (measure("before", lang, "n_rejected"), measure("after", lang, "n_rejected"));
        if was < 6 || is > 3 {
            problems.push(format!("{lang}: careless answers {was} -> {is} of 12"));
        }
        let (was, is) = (measure("before", lang, "n_neither"), measure("after", lang, "n_neither"));
        if is > was + 3 {
            problems.push(format!("{lang} breaks: neither {was} -> {is} of 12"));
        }
    }
    if n != 72 || before * 100 < 75 * n || after * 100 > 15 * n {
        problems.push(format!("careless answers {before} -> {after} of {n}"));
    }
    for key in ["n_rejected", "n_neither"] {
        if measure("after", "en", key) > 0 {
            problems.push(format!("English does not keep its answers: {key}"));
        }
    }
    if summary["failure_signs"] != serde_json::json!([]) {
        problems.push(format!("{}", summary["failure_signs"]));
    }
    problems
}

fn smoke(work: &Sandbox, more: &[&str]) -> (Value, String) {
    let output = work.mpo(&[&["train", "--config", "smoke.toml", "--set", "output.dir=run"][..], more].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let summary = std::fs::read_to_string(work.path("run/summary.json")).unwrap();
    (serde_json::from_str(&summary).unwrap(), said)
}

#[test]
fn the_smoke_run_lowers_careless_answers_and_breaks_no_language() {
    let work = Sandbox::new();
    let (summary, said) = smoke(&work, &[]);
    assert_eq!(problems(&summary), [""; 0], "{said}");
    for expected in ["Questions ", "\n  sw (12) ", "like the rejected answer", "[like the chosen answer]", "Failure signs: none"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(!said.contains("first and last batch"), "{said}");
    assert!(summary["examples"].as_array().unwrap().len() >= 2);

    // The same questions by the README's commands.
    let questions = concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny/questions.jsonl");
    for (model, out) in [("builtin:tiny", "before"), ("run/final", "after")] {
        let output = work.mpo(&["eval", "--bench", "prompts", "--data", questions, "--model", model, "--judge", "nearest", "--out", out]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let output = work.mpo(&["eval", "report", "after", "before", "--baseline", "before", "--html", "report.html"]);
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    let page = std::fs::read_to_string(work.path("report.html")).unwrap();
    assert!(page.contains("answers like the rejected one fell from") && page.contains(" of 12; "), "{told}");
    assert!(!told.contains("0.0-0.0"), "{told}");
}

#[test]
fn a_run_that_hardly_trains_does_not_pass_for_one_that_does() {
    let (summary, _) = smoke(&Sandbox::new(), &["--set", "train.max_steps=2", "--set", "eval.every_steps=50"]);
    let problems = problems(&summary);
    assert!(problems.iter().any(|problem| problem.starts_with("careless answers ")), "{problems:?}");
}
