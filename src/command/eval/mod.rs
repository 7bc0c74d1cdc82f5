//! `mpo eval`: asks, judges, reports. What it does lies in `eval`; here it is put together and printed.

mod check;
mod facts;
mod judge;
mod report;
mod run;
mod tested;

use super::print;
use crate::cli::{EvalAction, EvalArgs};
use crate::escape::{escape_for_terminal, one_line};
use crate::eval::bench;
use crate::eval::item::Item;
use crate::eval::record::{Response, Verdict};
use crate::progress::say;
use anyhow::Result;
use std::process::ExitCode;

/// Dispatches to the subcommand, or answers benchmarks.
pub fn run(args: &EvalArgs) -> Result<ExitCode> {
    match &args.action {
        Some(EvalAction::Judge { run, judge, retry_unparsed, show_responses }) => judge::run(run, judge, *retry_unparsed, *show_responses),
        Some(EvalAction::Report { runs, baseline, html, judge }) => {
            report::run(runs, baseline.as_deref(), html.as_deref(), judge.as_deref())
        }
        Some(EvalAction::JudgeCheck { gold, judge, correct }) => check::run(gold, judge, correct.as_deref()),
        None if args.list && args.json => {
            print(&format!("{:#}\n", bench::list_json()))?;
            Ok(ExitCode::SUCCESS)
        }
        None if args.list => {
            print(&bench::list_text())?;
            Ok(ExitCode::SUCCESS)
        }
        None => run::run(args),
    }
}

/// Characters of a text that are shown.
const SHOWN: usize = 2000;

/// Shows what is new, as `--show-responses` asks; otherwise nothing.
fn show_response(show: bool) -> impl Fn(&Item, &Response) {
    move |item, response| {
        if !show {
            return;
        }
        for (turn, answer) in item.turns.iter().zip(&response.answers) {
            let (id, lang) = (one_line(&item.id, 80), one_line(&item.lang, 20));
            say(&format!("[{lang} {id}] {}\n  {}", one_line(turn, SHOWN), escape_for_terminal(&answer.text).replace('\n', "\n  ")));
        }
    }
}

/// The same with the verdict.
fn show_verdict(show: bool) -> impl Fn(&Item, &Response, &Verdict) {
    let show_response = show_response(show);
    move |item, response, verdict| {
        show_response(item, response);
        if show {
            let said = verdict.label.as_deref().or(verdict.unparsed.as_deref()).unwrap_or("scored");
            say(&format!("  -> {}", one_line(said, SHOWN)));
        }
    }
}
