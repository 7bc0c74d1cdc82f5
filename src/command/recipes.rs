//! `mpo recipes`: the configurations inside the binary; and what `mpo train` says when it is given none.

use super::{USAGE, print, print_data};
use crate::cli::{RecipesAction, RecipesArgs};
use crate::config::recipes::{RECIPES, find};
use anyhow::Result;
use std::io::Write;
use std::process::ExitCode;

/// Lists the recipes, or prints one.
///
/// # Errors
/// No recipe of that name; stdout cannot be written.
pub fn run(args: &RecipesArgs) -> Result<ExitCode> {
    match &args.action {
        Some(RecipesAction::Show { name }) => print_data(find(name)?.text)?,
        None => print(&format!("{}\nShow one: mpo recipes show NAME\nRun one:  mpo train --config NAME\n", table()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `mpo train` without a configuration: what to do next.
pub(super) fn say_how_to_start() -> ExitCode {
    let text = format!(
        "\
error: `mpo train` needs a configuration: what to train, on which data, for how long

To see it work, offline, in under a minute:
  mpo train --config smoke.toml

To train with a recipe that is inside this binary:
  mpo train --config llama31.toml --dry-run     checks everything first
  mpo train --config llama31.toml

To write your own, start from one:
  mpo recipes show llama31.toml > my.toml
  mpo train --config my.toml --set data.path=my.jsonl

To go on with a stopped run:
  mpo train --resume OUT

Recipes:
{}",
        table()
    );
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::from(USAGE)
}

fn table() -> String {
    let width = RECIPES.iter().map(|recipe| recipe.name.len()).max().unwrap_or(0);
    RECIPES.iter().map(|recipe| format!("  {:width$}  {}\n", recipe.name, recipe.description())).collect()
}
