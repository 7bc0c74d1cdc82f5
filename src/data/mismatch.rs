//! Mismatched pairs: each row's prompt with the answers to another prompt. KTO estimates with them how far the policy has moved.
//!
//! They are fixed once, before training, so that the reference's scores of them are a column of the data like any other. Answers rotate over
//! the distinct dominant prompts: a row takes those of the row at its own place in the next group, which in data with the same languages in
//! the same order is a row of its own language. A row's own answer in another language belongs to its own group and is never taken.

use super::encode::{EncodedPreference, EncodedRow, Response};
use anyhow::{Result, ensure};
use std::collections::HashMap;

/// Gives every row of `rows` its mismatched pair, no sequence of which is longer than `max_tokens`. Where all of them are about one prompt
/// the answers of `others` are taken.
///
/// # Errors
/// There is no answer to another prompt.
pub fn assign(rows: &mut [EncodedRow], others: &[EncodedRow], max_tokens: usize) -> Result<()> {
    let own = groups(rows);
    let donors: Vec<Vec<EncodedPreference>> = match own.len() {
        0 => return Ok(()),
        1 => {
            let prompt = subject(&rows[0]).to_vec();
            let strangers: Vec<EncodedRow> = others.iter().filter(|row| subject(row) != prompt).cloned().collect();
            let n_rows = rows.len();
            ensure!(
                !strangers.is_empty(),
                "`objective.kind` \"kto\" compares each prompt with the answers to another, and all {n_rows} rows are about one prompt"
            );
            groups(&strangers).into_iter().take(1).map(|group| targets(&strangers, &group)).collect()
        }
        _ => own.iter().cycle().skip(1).take(own.len()).map(|group| targets(rows, group)).collect(),
    };
    for (group, donors) in own.iter().zip(&donors) {
        for (place, &row) in group.iter().enumerate() {
            let donor = &donors[place % donors.len()];
            let target = &rows[row].target;
            let room = max_tokens.saturating_sub(target.prompt.len());
            rows[row].mismatched = Some(EncodedPreference {
                lang: target.lang.clone(),
                prompt: target.prompt.clone(),
                chosen: fitted(&donor.chosen, room),
                rejected: fitted(&donor.rejected, room),
            });
        }
    }
    Ok(())
}

/// What a row is about, whatever its language: its dominant prompt; its own in data without dominant pairs.
fn subject(row: &EncodedRow) -> &[u32] {
    row.dominant.as_ref().map_or(&row.target.prompt, |dominant| &dominant.prompt)
}

/// Rows by subject, in order of first appearance.
fn groups(rows: &[EncodedRow]) -> Vec<Vec<usize>> {
    let mut group_of: HashMap<&[u32], usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let group = *group_of.entry(subject(row)).or_insert(groups.len());
        if group == groups.len() {
            groups.push(Vec::new());
        }
        groups[group].push(index);
    }
    groups
}

fn targets(rows: &[EncodedRow], group: &[usize]) -> Vec<EncodedPreference> {
    group.iter().map(|&row| rows[row].target.clone()).collect()
}

/// Its first `room` tokens. The end of a turn that is cut off is no loss: the answer is not to the prompt in the first place.
fn fitted(response: &Response, room: usize) -> Response {
    match response.tokens.len() <= room {
        true => response.clone(),
        false => Response { tokens: response.tokens[..room].to_vec(), n_end_tokens: 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(lang: &str, dominant: Option<u32>, prompt: u32, answer: u32) -> EncodedRow {
        let pair = |lang: &str, prompt: u32, answer: u32| EncodedPreference {
            lang: lang.into(),
            prompt: vec![prompt; 3],
            chosen: Response { tokens: vec![answer; 4], n_end_tokens: 1 },
            rejected: Response { tokens: vec![answer + 1; 2], n_end_tokens: 1 },
        };
        let dominant = dominant.map(|prompt| pair("en", prompt, 90 + prompt));
        EncodedRow { id: format!("{prompt}/{lang}"), dominant, target: pair(lang, prompt, answer), mismatched: None }
    }

    fn chosen(rows: &[EncodedRow]) -> Vec<u32> {
        rows.iter().map(|row| row.mismatched.as_ref().unwrap().chosen.tokens[0]).collect()
    }

    #[test]
    fn answers_rotate_over_dominant_prompts_and_keep_their_language() {
        let mut rows: Vec<EncodedRow> =
            (0..3).flat_map(|d| [("sw", 0), ("bn", 1)].map(|(lang, n)| row(lang, Some(d), 10 + 2 * d + n, 30 + 20 * d + 10 * n))).collect();
        assign(&mut rows, &[], 100).unwrap();
        assert_eq!(chosen(&rows), [50, 60, 70, 80, 30, 40]);
        let mismatched = rows[0].mismatched.as_ref().unwrap();
        assert_eq!((&mismatched.prompt, mismatched.rejected.tokens[0]), (&rows[0].target.prompt, 51));
    }

    #[test]
    fn a_smaller_group_gives_its_answers_more_than_once() {
        let mut rows = [row("sw", Some(0), 10, 30), row("bn", Some(0), 11, 40), row("sw", Some(1), 12, 50)];
        assign(&mut rows, &[], 100).unwrap();
        assert_eq!(chosen(&rows), [50, 50, 30]);
    }

    #[test]
    fn without_dominant_pairs_prompts_are_told_apart() {
        let mut rows = [row("en", None, 10, 30), row("en", None, 10, 40), row("en", None, 12, 50)];
        assign(&mut rows, &[], 100).unwrap();
        assert_eq!(chosen(&rows), [50, 50, 30]);
    }

    #[test]
    fn one_prompt_takes_the_answers_of_other_rows_or_is_refused() {
        let mut rows = [row("sw", Some(0), 10, 30), row("bn", Some(0), 11, 40)];
        let error = assign(&mut rows, &[row("sw", Some(0), 13, 60)], 100).unwrap_err().to_string();
        assert!(error.contains("all 2 rows are about one prompt"), "{error}");
        assign(&mut rows, &[row("sw", Some(0), 13, 60), row("zh", Some(5), 14, 70)], 100).unwrap();
        assert_eq!(chosen(&rows), [70, 70]);
    }

    #[test]
    fn a_sequence_that_would_be_too_long_is_cut() {
        let mut rows = [row("sw", Some(0), 10, 30), row("sw", Some(1), 12, 50)];
        assign(&mut rows, &[], 6).unwrap();
        let mismatched = rows[0].mismatched.as_ref().unwrap();
        assert_eq!(mismatched.chosen, Response { tokens: vec![50; 3], n_end_tokens: 0 });
        assert_eq!(mismatched.rejected, rows[1].target.rejected);
    }
}
