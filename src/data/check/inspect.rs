//! Rows looked at one by one, piece by piece, so that training can do as `mpo check` does without keeping their texts.

use super::tags::Tags;
use super::text::{ends_a_sentence, ends_in_turn_token, holds_person_mark, scripts_differ};
use super::{Finding, FindingKind, Findings, Severity};
use crate::config::{ObjectiveConfig, ObjectiveKind};
use crate::data::columns::Columns;
use crate::data::encode::Encoder;
use crate::data::pair::{PreferencePair, PreferenceRow, Role};
use crate::data::transcript::marks_of;
use crate::text::{comparable, same};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Rows whose language is looked at before training; `mpo check` looks at all.
const ENOUGH_TAGGED_ROWS: usize = 500;

/// How closely rows are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::data) enum Depth {
    /// Before training: what is wrong.
    Training,
    /// Also what is a guess about single answers.
    Whole,
}

/// Of texts, in their comparable form.
type Key = [u8; 32];

/// Looks at rows in their order, and keeps what it finds and none of their texts.
pub(in crate::data) struct Inspector<'a> {
    encoder: Option<&'a Encoder>,
    objective: Option<&'a ObjectiveConfig>,
    depth: Depth,
    findings: Findings,
    ids: HashSet<String>,
    dominant: HashSet<Key>,
    /// The first row with these texts, and with this target prompt.
    rows: HashMap<Key, String>,
    prompts: HashMap<Key, String>,
    /// Responses that do not end like a sentence, and all, by side and language.
    cut: BTreeMap<(&'static str, String), (usize, usize)>,
    tags: Tags,
    labels: Labels,
}

/// Rows with both responses, the chosen one only, the rejected one only.
#[derive(Default)]
struct Labels {
    n_both: usize,
    n_chosen: usize,
    n_rejected: usize,
}

/// A fault of one row.
type Found = (FindingKind, Severity, String, Option<String>);

impl<'a> Inspector<'a> {
    pub fn new(encoder: Option<&'a Encoder>, objective: Option<&'a ObjectiveConfig>, depth: Depth) -> Self {
        Self {
            encoder,
            objective,
            depth,
            findings: Findings::default(),
            ids: HashSet::new(),
            dominant: HashSet::new(),
            rows: HashMap::new(),
            prompts: HashMap::new(),
            cut: BTreeMap::new(),
            tags: Tags::default(),
            labels: Labels::default(),
        }
    }

    /// Takes the next rows in.
    pub fn look(&mut self, rows: &[PreferenceRow]) {
        let keys: Vec<RowKeys> = rows.par_iter().map(RowKeys::of).collect();
        let is_first: Vec<bool> = keys.iter().map(|keys| keys.dominant.is_some_and(|key| self.dominant.insert(key))).collect();
        let found: Vec<Vec<Found>> = rows.par_iter().zip(&is_first).map(|(row, is_first)| self.of_row(row, *is_first)).collect();
        for (kind, severity, row, detail) in found.into_iter().flatten() {
            self.findings.add(kind, severity, row, detail);
        }
        for (row, keys) in rows.iter().zip(keys) {
            self.look_for_repetition(row, keys);
            let labels = &mut self.labels;
            match (&row.target.chosen, &row.target.rejected) {
                (Some(_), Some(_)) => labels.n_both += 1,
                (Some(_), None) => labels.n_chosen += 1,
                (None, _) => labels.n_rejected += 1,
            }
        }
        // Before training a sample is enough, since a tag that is mistaken is so in row after row.
        if self.depth == Depth::Whole || self.tags.n_rows() < ENOUGH_TAGGED_ROWS {
            self.tags.look(rows, &is_first, self.depth == Depth::Whole);
        }
        if self.depth == Depth::Whole {
            self.count_cut(rows, &is_first);
        }
    }

    /// What was found.
    pub fn finish(mut self) -> Findings {
        let cut = std::mem::take(&mut self.cut);
        let share = |((side, lang), (n_cut, n)): (&(&str, String), &(usize, usize))| format!("{side}{lang} {n_cut} of {n}");
        // "dominant en 5 of 200, target bn 180 of 200, …": by side and language.
        let shares = || cut.iter().filter(|(_, (n_cut, _))| *n_cut > 0).map(share).collect::<Vec<_>>().join(", ");
        self.findings.describe(FindingKind::NoSentenceEnd, shares);
        self.tags.report(&mut self.findings);
        self.judge_labels();
        self.findings
    }

    /// What training says before it begins: all that is wrong, and columns that mean something.
    pub fn warnings(self, columns: &Columns) -> Vec<Finding> {
        let mut findings = self.finish();
        findings.add_columns(columns);
        let is_said = |finding: &Finding| {
            finding.severity == Severity::Wrong || matches!(finding.kind, FindingKind::UnreadColumn | FindingKind::Unbalanced)
        };
        findings.sorted().into_iter().filter(is_said).collect()
    }

    fn of_row(&self, row: &PreferenceRow, is_first_of_dominant: bool) -> Vec<Found> {
        let mut found = Vec::new();
        let id = &row.id;
        let Some(dominant) = &row.dominant else {
            self.of_pair(&row.target, |field| if field.is_empty() { id.clone() } else { format!("{id} {field}") }, &mut found);
            return found;
        };
        let (dominant_prompt, target_prompt) = (prompt_text(dominant), prompt_text(&row.target));
        if same(&dominant_prompt, &target_prompt) {
            found.push((FindingKind::Untranslated, Severity::Wrong, id.clone(), None));
        } else if dominant.lang == row.target.lang && !target_prompt.trim().is_empty() {
            found.push((FindingKind::SameLanguage, Severity::Wrong, id.clone(), None));
        }
        for (side, pair) in [("dominant", dominant), ("target", &row.target)].into_iter().skip(usize::from(!is_first_of_dominant)) {
            self.of_pair(pair, |field| format!("{id} {side}{}{field}", if field.is_empty() { "" } else { "." }), &mut found);
        }
        found
    }

    /// `place` names the row, and where in it the field of that name is (the pair itself for an empty name).
    fn of_pair(&self, pair: &PreferencePair, place: impl Fn(&str) -> String, found: &mut Vec<Found>) {
        let prompt = prompt_text(pair);
        let mut add = |kind, severity, field: &str, detail: Option<String>| found.push((kind, severity, place(field), detail));
        if prompt.trim().is_empty() {
            add(FindingKind::EmptyPrompt, Severity::Wrong, "", None);
        }
        if let (Some(chosen), Some(rejected)) = (&pair.chosen, &pair.rejected)
            && same(chosen, rejected)
        {
            add(FindingKind::EqualResponses, Severity::Wrong, "", None);
        }
        if let Some(what) = turn_order(pair) {
            add(FindingKind::TurnOrder, Severity::Wrong, "prompt", Some(what));
        }
        let users = pair.prompt.iter().filter(|turn| turn.role == Role::User);
        if let Some((turn, (person, assistant))) = users.filter_map(|turn| Some((turn, marks_of(&turn.content)?))).next() {
            // A text may quote a dialogue; one that begins with its mark is one.
            let is_one = turn.content.trim_start().starts_with(person) || !person.ends_with(':');
            let severity = if is_one { Severity::Wrong } else { Severity::WorthKnowing };
            let hint = if person == "Human:" { ": `data.transcript = true` splits them into turns" } else { "" };
            add(FindingKind::Transcript, severity, "prompt", Some(format!("`{person}` … `{assistant}`{hint}")));
        }
        for turn in &pair.prompt {
            self.special_tokens(&turn.content, |severity, detail| add(FindingKind::SpecialToken, severity, "prompt", detail));
        }
        for (which, response) in pair.responses() {
            if marks_of(response).is_some() || holds_person_mark(response) {
                let detail = "the answer goes on with a turn of the person".to_owned();
                add(FindingKind::Transcript, Severity::Wrong, which, Some(detail));
            }
            if let Some(token) = self.turn_token(response) {
                let detail = format!("`{token}`: the template ends the turn by itself; remove it from the answers");
                add(FindingKind::EndsInSpecialToken, Severity::Wrong, which, Some(detail));
            } else {
                self.special_tokens(response, |severity, detail| add(FindingKind::SpecialToken, severity, which, detail));
            }
            if scripts_differ(&prompt, response) {
                add(FindingKind::OtherScript, Severity::Wrong, which, None);
            }
            if self.depth == Depth::Whole && !ends_a_sentence(response) {
                add(FindingKind::NoSentenceEnd, Severity::WorthKnowing, which, None);
            }
        }
    }

    /// The token that ends `response`, of this tokenizer or of a known one.
    fn turn_token(&self, response: &str) -> Option<String> {
        let response = response.trim_end();
        let own = self.encoder.and_then(|encoder| encoder.special_tokens(response).last().filter(|token| response.ends_with(token)));
        own.or_else(|| ends_in_turn_token(response)).map(str::to_owned)
    }

    fn special_tokens(&self, text: &str, add: impl FnOnce(Severity, Option<String>)) {
        let Some(encoder) = self.encoder else { return };
        if let Some(token) = encoder.special_tokens(text).next() {
            let how = if encoder.reads_special_tokens() { "a token" } else { "text" };
            add(Severity::WorthKnowing, Some(format!("such as `{token}`, read as {how} (`data.special_tokens`)")));
        }
    }

    fn look_for_repetition(&mut self, row: &PreferenceRow, keys: RowKeys) {
        if !self.ids.insert(row.id.clone()) {
            self.findings.add(FindingKind::RepeatedId, Severity::Wrong, row.id.clone(), None);
        }
        if let Some(first) = self.rows.get(&keys.row) {
            self.findings.add(FindingKind::RepeatedRow, Severity::Wrong, format!("{} (as {first})", row.id), None);
        } else if let Some(first) = self.prompts.get(&keys.prompt)
            && row.target.responses().count() == 2
        {
            // Labelled data has a row for each answer to a prompt.
            self.findings.add(FindingKind::RepeatedPrompt, Severity::WorthKnowing, format!("{} (as {first})", row.id), None);
        }
        self.rows.entry(keys.row).or_insert_with(|| row.id.clone());
        self.prompts.entry(keys.prompt).or_insert_with(|| row.id.clone());
    }

    fn count_cut(&mut self, rows: &[PreferenceRow], is_first: &[bool]) {
        for (row, is_first) in rows.iter().zip(is_first) {
            let dominant = row.dominant.iter().filter(|_| *is_first).map(|pair| ("dominant ", pair));
            let side_of_target = if row.dominant.is_some() { "target " } else { "" };
            for (side, pair) in dominant.chain([(side_of_target, &row.target)]) {
                let (n_cut, n) = self.cut.entry((side, pair.lang.clone())).or_default();
                *n_cut += pair.responses().filter(|(_, text)| !ends_a_sentence(text)).count();
                *n += pair.responses().count();
            }
        }
    }

    /// KTO learns from wanted and unwanted responses, best where both weigh about the same: `λ_D n_D : λ_U n_U` from 1 to 4/3 (arXiv
    /// 2402.01306).
    fn judge_labels(&mut self) {
        let Labels { n_both, n_chosen, n_rejected } = self.labels;
        let is_for_kto = self.objective.is_none_or(|objective| objective.kind == ObjectiveKind::Kto);
        if n_both > 0 || n_chosen + n_rejected == 0 || !is_for_kto {
            return;
        }
        if n_chosen == 0 || n_rejected == 0 {
            let message = one_sided(n_chosen, n_rejected);
            return self.findings.add(FindingKind::OneSided, Severity::Wrong, String::new(), Some(message));
        }
        let (desirable, undesirable) =
            self.objective.map_or((1.0, 1.0), |objective| (objective.desirable_weight, objective.undesirable_weight));
        let ratio = desirable * n_chosen as f64 / (undesirable * n_rejected as f64);
        if !(0.99..1.35).contains(&ratio) {
            let hint = match n_chosen > n_rejected {
                true => format!("`objective.undesirable_weight` = {:.2}", desirable * n_chosen as f64 / n_rejected as f64),
                false => format!("`objective.desirable_weight` = {:.2}", undesirable * n_rejected as f64 / n_chosen as f64),
            };
            let message =
                format!("{n_chosen} wanted and {n_rejected} unwanted responses; {hint} makes them weigh the same, as KTO's authors advise");
            self.findings.add(FindingKind::Unbalanced, Severity::WorthKnowing, String::new(), Some(message));
        }
    }
}

/// What is wrong with labelled data of one label: `n_chosen` wanted responses, or `n_rejected` others.
pub fn one_sided(n_chosen: usize, n_rejected: usize) -> String {
    let (n, label) = if n_rejected == 0 { (n_chosen, true) } else { (n_rejected, false) };
    let instead = if label { "; wanted responses alone are for `objective.kind` \"sft\"" } else { "" };
    format!("`label` is {label} in all {n} rows, and KTO weighs wanted responses against unwanted ones{instead}")
}

/// What of a row may be there again.
struct RowKeys {
    dominant: Option<Key>,
    row: Key,
    prompt: Key,
}

impl RowKeys {
    fn of(row: &PreferenceRow) -> Self {
        let texts = |pair: &PreferencePair, hash: &mut Sha256| {
            pair.prompt.iter().for_each(|turn| put(hash, turn.role.name(), &turn.content));
            pair.responses().for_each(|(name, text)| put(hash, name, text));
        };
        let dominant = row.dominant.as_ref().map(|pair| {
            let mut hash = Sha256::new();
            texts(pair, &mut hash);
            Key::from(hash.finalize())
        });
        let mut hash = Sha256::new();
        hash.update(dominant.unwrap_or_default());
        texts(&row.target, &mut hash);
        let whole = hash.finalize().into();
        let mut hash = Sha256::new();
        put(&mut hash, "lang", &row.target.lang);
        row.target.prompt.iter().for_each(|turn| put(&mut hash, turn.role.name(), &turn.content));
        Self { dominant, row: whole, prompt: hash.finalize().into() }
    }
}

fn put(hash: &mut Sha256, name: &str, text: &str) {
    let text = comparable(text);
    hash.update(name);
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text.as_bytes());
}

/// What is odd about who speaks when.
fn turn_order(pair: &PreferencePair) -> Option<String> {
    let roles: Vec<Role> = pair.prompt.iter().map(|turn| turn.role).collect();
    let turns = roles.strip_prefix(&[Role::System]).unwrap_or(&roles);
    if turns.contains(&Role::System) {
        return Some("a system turn that is not the first".into());
    }
    if turns.first() == Some(&Role::Assistant) {
        return Some("the assistant speaks first".into());
    }
    let again = turns.windows(2).find(|pair| pair[0] == pair[1])?;
    Some(format!("two {} turns in a row", again[0].name()))
}

fn prompt_text(pair: &PreferencePair) -> String {
    pair.prompt.iter().map(|turn| turn.content.as_str()).collect::<Vec<_>>().join("\n")
}
