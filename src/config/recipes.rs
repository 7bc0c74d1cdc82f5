//! The recipes inside the binary: an installed `mpo` trains without a checkout.

use super::keys::{list, nearest};
use super::problems::{ConfigError, Place, Problem};
use anyhow::{Context, Result};
use std::path::Path;

/// A recipe inside the binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// As `--config` takes it: `llama31.toml`, `official/llama31.toml`.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
}

/// All of them, the first to try first.
pub const RECIPES: [Recipe; 17] = [
    Recipe { name: "smoke.toml", text: include_str!("../../configs/smoke.toml") },
    Recipe { name: "llama31.toml", text: include_str!("../../configs/llama31.toml") },
    Recipe { name: "gemma2.toml", text: include_str!("../../configs/gemma2.toml") },
    Recipe { name: "qwen25.toml", text: include_str!("../../configs/qwen25.toml") },
    Recipe { name: "lora.toml", text: include_str!("../../configs/lora.toml") },
    Recipe { name: "official/llama31.toml", text: include_str!("../../configs/official/llama31.toml") },
    Recipe { name: "official/gemma2.toml", text: include_str!("../../configs/official/gemma2.toml") },
    Recipe { name: "official/qwen25.toml", text: include_str!("../../configs/official/qwen25.toml") },
    Recipe { name: "baselines/sft.toml", text: include_str!("../../configs/baselines/sft.toml") },
    Recipe { name: "baselines/dpo.toml", text: include_str!("../../configs/baselines/dpo.toml") },
    Recipe { name: "baselines/ipo.toml", text: include_str!("../../configs/baselines/ipo.toml") },
    Recipe { name: "baselines/robust_dpo.toml", text: include_str!("../../configs/baselines/robust_dpo.toml") },
    Recipe { name: "baselines/r_dpo.toml", text: include_str!("../../configs/baselines/r_dpo.toml") },
    Recipe { name: "baselines/cpo.toml", text: include_str!("../../configs/baselines/cpo.toml") },
    Recipe { name: "baselines/orpo.toml", text: include_str!("../../configs/baselines/orpo.toml") },
    Recipe { name: "baselines/simpo.toml", text: include_str!("../../configs/baselines/simpo.toml") },
    Recipe { name: "baselines/kto.toml", text: include_str!("../../configs/baselines/kto.toml") },
];

impl Recipe {
    /// The file's first line, without the comment sign.
    pub fn description(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
    }
}

/// The built-in recipe of that name, with or without `.toml`.
///
/// # Errors
/// [`ConfigError`] with the names there are.
pub fn find(name: &str) -> Result<Recipe> {
    let wanted = name.strip_suffix(".toml").unwrap_or(name);
    let found = RECIPES.into_iter().find(|recipe| recipe.name.strip_suffix(".toml") == Some(wanted));
    found.ok_or_else(|| not_found(name, "no built-in recipe of that name").into())
}

/// A configuration's text, and what problems call it.
pub(crate) struct Text {
    pub text: String,
    pub origin: String,
}

/// The file `source` if there is one, else the built-in recipe of that name.
///
/// # Errors
/// [`ConfigError`] with the names there are; an unreadable file.
pub(crate) fn read(source: &str) -> Result<Text> {
    let path = Path::new(source);
    // Not `is_file`: a pipe, as the shell's `<(…)` makes one, is read too.
    if path.exists() && !path.is_dir() {
        let text = std::fs::read_to_string(path).with_context(|| format!("`{source}` cannot be read as UTF-8 text"))?;
        return Ok(Text { text, origin: source.into() });
    }
    if path.is_dir() {
        return Err(not_a_file(source).into());
    }
    let recipe = find(source).map_err(|_| not_found(source, "no such file, and no built-in recipe of that name"))?;
    Ok(Text { text: recipe.text.into(), origin: format!("{} (built in)", recipe.name) })
}

/// A run's folder is what is given most often.
fn not_a_file(name: &str) -> ConfigError {
    let inner = Path::new(name).join("config.toml");
    let meant = if inner.is_file() { format!("; did you mean `{}`?", inner.display()) } else { String::new() };
    let message = format!("it is a folder, and a configuration is a TOML file{meant}");
    ConfigError::new(vec![Problem { place: Place::Nowhere { origin: name.into() }, message }])
}

fn not_found(name: &str, what: &str) -> ConfigError {
    let names = RECIPES.map(|recipe| recipe.name);
    let meant = nearest(&format!("{}.toml", name.trim_end_matches(".toml")), names.map(str::to_string))
        .map_or(String::new(), |meant| format!("; did you mean `{meant}`?"));
    let message = format!("{what}{meant} Built in: {}", list(&names));
    ConfigError::new(vec![Problem { place: Place::Nowhere { origin: name.into() }, message }])
}
