//! What goes wrong around `mpo eval`: a full disk, a process that is killed, two processes at once. Nothing that was finished is lost, and the run
//! ends with the files of one that was never disturbed.

use crate::eval::{ASK, Place};
use crate::faults::with_file_limit;
use crate::judges::{Endpoint, says};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Every file of a run by its name, without the times in names and texts.
fn timeless(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![run.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(run).unwrap().to_str().unwrap();
            // `results_2026-11-22T14-31-00.123456.json`: the time stands behind the last underscore.
            let stamped = name.contains("/results_") || name.contains("/samples_");
            let plain = if stamped { name.rsplit_once('_').unwrap().0 } else { name };
            let mut bytes = fs::read(&path).unwrap();
            if name.ends_with(".json") {
                let mut json: Value = serde_json::from_slice(&bytes).unwrap();
                for key in ["date", "seconds", "total_evaluation_time_seconds"] {
                    json.as_object_mut().unwrap().remove(key);
                }
                bytes = json.to_string().into_bytes();
            }
            assert!(files.insert(plain.to_owned(), bytes).is_none(), "`{plain}` was written twice");
        }
    }
    files
}

#[track_caller]
fn assert_same(whole: &BTreeMap<String, Vec<u8>>, run: &Path) {
    let found = timeless(run);
    assert_eq!(whole.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, bytes) in whole {
        assert!(*bytes == found[name], "{name}:\n{}\nand\n{}", String::from_utf8_lossy(bytes), String::from_utf8_lossy(&found[name]));
    }
}

/// The lines of `part` that end are lines of `whole`, in any order.
fn assert_part(part: &Path, whole: &[u8]) {
    let Ok(bytes) = fs::read(part) else { return };
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    for line in bytes[..end].split(|byte| *byte == b'\n') {
        assert!(whole.split(|byte| *byte == b'\n').any(|known| known == line), "{}", String::from_utf8_lossy(line));
    }
}

/// Whichever file was being written when the disk was full, the error names it, and with room again the run ends as it would have.
#[test]
fn a_full_disk_loses_nothing() {
    let place = Place::new();
    place.eval("whole", &["--judge", "keyword"]);
    let whole = timeless(&place.path("whole"));
    let mut met = Vec::new();
    // No file may grow beyond this: each of them is, for some limit, the first that does not fit.
    let mut limits = vec![500];
    for folder in ["whole", "whole/prompts", "whole/builtin__tiny"] {
        let files = fs::read_dir(place.path(folder)).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
        limits.extend(files.filter(|file| file.is_file()).map(|file| file.len() - 20));
    }
    limits.sort_unstable();
    for limit in limits {
        let mut command = place.command(&[&ASK[..], &["--out", "run", "--judge", "keyword"]].concat());
        with_file_limit(&mut command, limit);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{limit}: {said}");
        assert!(said.contains("cannot write `run/") && said.contains("File too large"), "{limit}: {said}");
        assert_part(&place.path("run/prompts/responses.jsonl"), &whole["prompts/responses.jsonl"]);
        let cannot = said.split("cannot write `").nth(1).unwrap().split('`').next().unwrap();
        met.push(cannot.rsplit('/').next().unwrap().split('_').next().unwrap().to_owned());
        if place.path("run/run.json").exists() {
            assert!(said.contains("`mpo eval --resume run` does the rest"), "{said}");
            place.succeed(&["eval", "--resume", "run"]);
        } else {
            place.eval("run", &["--judge", "keyword"]);
        }
        assert_same(&whole, &place.path("run"));
        fs::remove_dir_all(place.path("run")).unwrap();
    }
    for file in ["run.json", "responses.jsonl", "samples", "results"] {
        assert!(met.iter().any(|name| name == file), "no limit met `{file}`: {met:?}");
    }
}

#[test]
fn verdicts_replies_pages_and_answers_meet_a_full_disk_too() {
    let place = Place::new();
    let server = Endpoint::new(|_, _| says("unsafe"));
    place.eval("run", &[]);
    place.eval("whole", &[]);
    let judge = |run: &'static str| ["eval", "judge", run, "--judge", "openai:judge-1", "--judge-url", &server.url];
    place.succeed(&judge("whole"));
    let verdicts = fs::read(crate::eval::file_in(&place.path("whole/prompts"), "verdicts-openai")).unwrap();
    fs::remove_dir_all(place.path("cache/judge")).unwrap();
    let limited = |arguments: &[&str], limit: u64| {
        let mut command = place.command(arguments);
        with_file_limit(&mut command, limit);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    // The replies' cache is full first, then, with the replies there, the facts of the run, then the verdicts.
    let said = limited(&judge("run"), 400);
    assert!(said.contains("run.json") && said.contains("the same command goes on"), "{said}");
    let facts = fs::metadata(place.path("whole/run.json")).unwrap().len();
    assert!(facts > 1000, "{facts}");
    fs::write(place.path("cache/judge/replies.jsonl"), "x".repeat(facts as usize)).unwrap();
    let said = limited(&judge("run"), facts + 60);
    assert!(said.contains("cannot write the judge's cache") && said.contains("replies.jsonl"), "{said}");
    place.succeed(&judge("run"));
    assert_eq!(fs::read(crate::eval::file_in(&place.path("run/prompts"), "verdicts-openai")).unwrap(), verdicts);
    let said = limited(&["eval", "report", "run", "--html", "page.html"], 2000);
    assert!(said.contains("cannot write `page.html`") && !place.path("page.html").exists(), "{said}");

    let generate =
        ["generate", "--model", "builtin:tiny", "--prompts", "prompts.jsonl", "--max-new-tokens", "12", "--out", "answers.jsonl"];
    let said = limited(&generate, 1000);
    assert!(said.contains("cannot write `answers.jsonl`; the answers before,"), "{said}");
    let (kept, lines) = (fs::read_to_string(place.path("answers.jsonl")).unwrap(), place.lines("answers.jsonl"));
    assert!(kept.ends_with('\n') && !lines.is_empty() && said.contains(&format!("{} lines", lines.len())), "{said}\n{kept}");
}

/// Numbers that look random and are the same in every run of the tests.
fn scatter(i: u64) -> u64 {
    (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33
}

/// Kills `mpo eval` `n_kills` times at moments spread over an undisturbed run, going on with the same folder as long as there is something to do;
/// whenever it came to its end, and at last, everything is as undisturbed.
fn kill_until_done(place: &Place, judge: &[&str], n_kills: usize) {
    let begun = Instant::now();
    place.eval("whole", judge);
    let whole_us = begun.elapsed().as_micros() as u64;
    // Replies that the first run paid for would be there already.
    let _ = fs::remove_dir_all(place.path("cache/judge"));
    let (whole, run) = (timeless(&place.path("whole")), place.path("killed"));
    let begin: Vec<&str> = [&ASK[..], &["--out", "killed"], judge].concat();
    let go_on = || if run.join("run.json").exists() { vec!["eval", "--resume", "killed"] } else { begin.clone() };
    let (mut killed, mut n_ends) = (0, 0);
    for attempt in 0.. {
        if killed == n_kills {
            break;
        }
        let mut child = place.command(&go_on()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(scatter(attempt) % whole_us));
        if child.try_wait().unwrap().is_none() {
            // SIGKILL on Unix: nothing of the process gets to run any more.
            child.kill().unwrap();
            child.wait().unwrap();
            killed += 1;
            assert_part(&run.join("prompts/responses.jsonl"), &whole["prompts/responses.jsonl"]);
            continue;
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_same(&whole, &run);
        fs::remove_dir_all(&run).unwrap();
        n_ends += 1;
        assert!(n_ends < 200, "it is always faster than the kill");
    }
    place.succeed(&go_on());
    assert_same(&whole, &run);
}

#[test]
fn killed_at_random_moments_a_run_ends_as_if_never_stopped() {
    kill_until_done(&Place::new(), &["--judge", "keyword"], 15);
}

#[test]
fn killed_at_random_moments_a_run_with_a_judge_at_an_endpoint_ends_the_same() {
    let place = Place::new();
    let server = Endpoint::new(|_, asked| {
        std::thread::sleep(Duration::from_millis(5));
        match asked.user().len() % 3 {
            0 => says("unsafe"),
            1 => says("no idea"),
            _ => says("safe"),
        }
    });
    let judge = ["--judge", "openai:judge-1", "--judge-url", &server.url, "--judge-concurrency", "3"];
    kill_until_done(&place, &judge, 15);
    // Asked again is at most what was under way when a process was killed.
    let questions: std::collections::BTreeSet<String> = server.asked().iter().map(|asked| asked.user().to_owned()).collect();
    assert_eq!(questions.len(), 12);
    // Replies that cannot be read are in no cache: they are asked for again after each kill.
    let n_asked = server.asked().iter().filter(|asked| asked.user().len() % 3 != 1).count();
    assert!(n_asked <= 2 * 12 + 15 * 3, "{n_asked}");
}

#[test]
fn a_run_that_was_killed_in_its_first_write_begins_anew() {
    let place = Place::new();
    fs::create_dir(place.path("run")).unwrap();
    fs::write(place.path("run/.run.json.4711.tmp"), "{").unwrap();
    place.eval("run", &[]);
    assert!(!place.path("run/.run.json.4711.tmp").exists());
}

#[test]
fn two_processes_do_not_write_into_one_run() {
    let place = Place::new();
    place.eval("run", &[]);
    let folder = fs::File::open(place.path("run")).unwrap();
    folder.lock().unwrap();
    for arguments in [&["eval", "--resume", "run"][..], &["eval", "judge", "run", "--judge", "keyword"]] {
        let said = place.fail(arguments);
        assert!(said.contains("another `mpo` is at work"), "{said}");
    }
    // Reading is no harm.
    place.succeed(&["eval", "report", "run"]);
    drop(folder);
    fs::write(place.path("run/prompts/.responses.jsonl.4711.tmp"), "{").unwrap();
    place.succeed(&["eval", "--resume", "run"]);
    assert!(!place.path("run/prompts/.responses.jsonl.4711.tmp").exists(), "what a killed process left is cleared away");
}
