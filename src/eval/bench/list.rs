//! What `mpo eval --list` says.

use super::card::{Card, Languages, Origin, Scoring};
use super::{all, languages};
use serde_json::{Value, json};

/// Two lines for each benchmark: name, prompts in each language, who scores, source and licence; what it asks, and its languages.
pub fn list_text() -> String {
    let header = ["bench", "prompts", "scored by", "source", "licence"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(header).chain(all().iter().map(|bench| row(bench.card()))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = String::new();
    for (i, [name, prompts, scored, source, licence]) in rows.iter().enumerate() {
        let [w0, w1, w2, w3] = [widths[0], widths[1], widths[2], widths[3]];
        text += &format!("{name:w0$}  {prompts:>w1$}  {scored:w2$}  {source:w3$}  {licence}\n");
        if let Some(bench) = i.checked_sub(1).map(|i| all()[i]) {
            let card = bench.card();
            text += &format!("  {}\n  languages: {}\n", card.about, spoken(card));
            if let Origin::Local { from } = card.origin {
                text += &format!("  --data: {from}\n");
            }
        }
    }
    text += "\nA judge is `--judge openai:MODEL`, `guard:DIR` or `keyword`. What is on the hub is downloaded once and stays that version; `--data` takes a\n\
             file or folder instead. `--limit N` asks a part of it, which is not comparable with the whole.\n";
    text
}

fn row(card: &Card) -> [String; 5] {
    let prompts = card.rows.map_or_else(|| "any".to_owned(), |rows| rows.to_string());
    let source = match card.origin {
        Origin::Hub { repo, .. } => format!("hub: {repo}"),
        Origin::Local { .. } => "--data".to_owned(),
    };
    [card.name.to_owned(), prompts, scored_by(card), source, card.licence.to_owned()]
}

fn scored_by(card: &Card) -> String {
    match card.scoring {
        Scoring::Rule => "rule".to_owned(),
        Scoring::RewardGap => "the model itself".to_owned(),
        Scoring::Judge(rubrics) => {
            let mut names: Vec<&str> = rubrics.iter().map(|(_, rubric)| *rubric).collect();
            names.dedup();
            format!("judge ({})", names.join(", "))
        }
    }
}

fn spoken(card: &Card) -> String {
    match card.languages {
        Languages::Listed { codes, .. } => codes.join(" "),
        Languages::OfData => "those of the file".to_owned(),
    }
}

/// The same as JSON, a list with an object for each benchmark.
pub fn list_json() -> Value {
    let entry = |card: &Card| {
        let languages = match card.languages {
            Languages::Listed { codes, .. } => codes.iter().map(|code| json!({ "code": code, "name": languages::name(code) })).collect(),
            Languages::OfData => Value::Null,
        };
        let (scored_by, rubrics) = match card.scoring {
            Scoring::Rule => ("rule", Vec::new()),
            Scoring::RewardGap => ("reward_gap", Vec::new()),
            Scoring::Judge(rubrics) => ("judge", rubrics.iter().map(|(kind, rubric)| json!({ "kind": kind, "rubric": rubric })).collect()),
        };
        let source = match card.origin {
            Origin::Hub { repo, files } => json!({ "hub": repo, "files": files }),
            Origin::Local { from } => json!({ "data": from }),
        };
        let metrics =
            card.metrics.iter().map(|metric| json!({ "name": metric.name, "higher_is_better": metric.better.higher_is_better() }));
        json!({
            "name": card.name, "aliases": card.aliases, "about": card.about, "languages": languages, "rows_per_language": card.rows,
            "scored_by": scored_by, "rubrics": rubrics, "metrics": metrics.collect::<Vec<_>>(), "source": source, "licence": card.licence,
            "needs_judge": scored_by == "judge", "needs_data": matches!(card.origin, Origin::Local { .. }),
            "max_new_tokens": card.max_new_tokens,
        })
    };
    all().iter().map(|bench| entry(bench.card())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_says_what_each_needs() {
        let text = list_text();
        for bench in all() {
            assert!(text.contains(&format!("\n{} ", bench.card().name)), "{text}");
        }
        let line = text.lines().find(|line| line.starts_with("multijail")).unwrap();
        let words: Vec<_> = line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        assert_eq!(words, ["multijail", "315", "judge (multijail)", "hub: DAMO-NLP-SG/MultiJail", "MIT"]);
        assert!(text.contains("\n  languages: bn de en es fr ja ru sw te th zh\n"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 150), "{text}");
    }

    #[test]
    fn the_list_is_there_as_json() {
        let list = list_json();
        let xstest = list.as_array().unwrap().iter().find(|entry| entry["name"] == "xstest").unwrap();
        assert_eq!(xstest["rubrics"][0], json!({ "kind": "benign", "rubric": "xstest" }));
        assert_eq!(xstest["languages"][0], json!({ "code": "en", "name": "English" }));
        assert_eq!(
            (&xstest["needs_judge"], &xstest["needs_data"], &xstest["rows_per_language"]),
            (&json!(true), &json!(false), &json!(450))
        );
    }
}
