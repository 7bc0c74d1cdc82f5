//! `data.sides`: which pairs of parallel data become rows to train on.
//!
//! A loss such as DPO's knows no dominant pair: it can be given the target pairs, the dominant ones, or all. A dominant pair becomes a row
//! once, however many rows share it, and stands before the first of them. It stays its own dominant pair, so that retention sees the same pairs
//! whatever is scored, and a held-out pair is held out as a whole.

use super::pair::PreferenceRow;
use crate::config::Sides;
use anyhow::{Result, bail};
use std::collections::HashSet;

/// Makes rows of rows, piece by piece.
pub(super) struct SideRows {
    sides: Sides,
    /// Keys of the dominant pairs that became rows.
    seen: HashSet<[u8; 32]>,
}

impl SideRows {
    pub fn new(sides: Sides) -> Self {
        Self { sides, seen: HashSet::new() }
    }

    /// # Errors
    /// A row without a dominant pair, where these are asked for.
    pub fn of(&mut self, rows: Vec<PreferenceRow>) -> Result<Vec<PreferenceRow>> {
        if self.sides == Sides::Target {
            return Ok(rows);
        }
        let mut made = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(dominant) = &row.dominant else {
                bail!(
                    "row `{}` has no dominant pair, and `data.sides` asks for them: leave it out, or give a file of the format `parallel` or \
                     `llamafactory`",
                    row.id
                )
            };
            if self.seen.insert(dominant.key()) {
                let id = format!("{} dominant", row.id);
                made.push(PreferenceRow { id, dominant: Some(dominant.clone()), target: dominant.clone() });
            }
            if self.sides == Sides::Both {
                made.push(row);
            }
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::pair::{Message, PreferencePair, Role};

    fn row(id: &str, dominant: &str) -> PreferenceRow {
        let pair = |lang: &str, content: &str| PreferencePair {
            lang: lang.into(),
            prompt: vec![Message { role: Role::User, content: content.into() }],
            chosen: Some("yes".into()),
            rejected: Some("no".into()),
        };
        PreferenceRow { id: id.into(), dominant: Some(pair("en", dominant)), target: pair("sw", id) }
    }

    fn ids(sides: Sides, pieces: &[&[PreferenceRow]]) -> Vec<String> {
        let mut made = SideRows::new(sides);
        pieces.iter().flat_map(|rows| made.of(rows.to_vec()).unwrap()).map(|row| row.id).collect()
    }

    #[test]
    fn a_dominant_pair_is_a_row_once_across_pieces() {
        let rows = [row("0", "a"), row("1", "a"), row("2", "b"), row("3", "a")];
        for pieces in [vec![&rows[..]], vec![&rows[..1], &rows[1..3], &rows[3..]]] {
            assert_eq!(ids(Sides::Target, &pieces), ["0", "1", "2", "3"]);
            assert_eq!(ids(Sides::Dominant, &pieces), ["0 dominant", "2 dominant"]);
            assert_eq!(ids(Sides::Both, &pieces), ["0 dominant", "0", "1", "2 dominant", "2", "3"]);
        }
    }

    #[test]
    fn a_dominant_row_keeps_its_pair_for_retention() {
        let made = SideRows::new(Sides::Dominant).of(vec![row("0", "a")]).unwrap();
        assert_eq!(made[0].target.lang, "en");
        assert_eq!(made[0].dominant.as_ref(), Some(&made[0].target));
    }

    #[test]
    fn rows_without_dominant_pairs_are_refused() {
        let plain = PreferenceRow { dominant: None, ..row("7", "a") };
        let error = SideRows::new(Sides::Both).of(vec![plain.clone()]).unwrap_err().to_string();
        assert!(error.contains("row `7`") && error.contains("`data.sides`"), "{error}");
        assert_eq!(SideRows::new(Sides::Target).of(vec![plain]).unwrap().len(), 1);
    }
}
