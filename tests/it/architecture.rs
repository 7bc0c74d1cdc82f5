//! The code's own rules, read off its text: who may use whom, who may print, and what no file may hold.

use std::fs;
use std::path::{Path, PathBuf};

/// Which other modules of the crate each module may use, tests aside. What is absent is the point: losses see no model, ops know no
/// model either, a model knows nothing of training, and nothing but the command line knows the command line. `data::batch` is where tokens
/// lie in a packed row: plain index ranges. `ops::dropout` is, for others, the hash that random numbers are made of.
const MAY_USE: &[(&str, &[&str])] = &[
    ("allocator", &[]),
    ("interrupt", &["progress"]),
    ("digest", &[]),
    ("escape", &[]),
    ("files", &[]),
    ("secret", &[]),
    ("text", &[]),
    // Nothing is said before it is made harmless to terminals and rid of passwords.
    ("progress", &["escape", "secret"]),
    // Problems repeat what was typed; stored addresses hold no secrets.
    ("config", &["escape", "secret"]),
    ("web", &["progress", "secret"]),
    ("cli", &[]),
    // A template is a stranger's program: its thread has an allowance of memory, and what it says is escaped.
    ("data", &["allocator", "config", "escape", "files", "progress", "text"]),
    ("objective", &["config"]),
    ("ops", &["config", "data::batch"]),
    ("model", &["config", "data::batch", "digest", "files", "ops"]),
    ("adapter", &["config", "files", "hub", "model", "ops", "progress", "reference"]),
    ("device", &["config", "ops"]),
    ("plan", &["config", "data::batch", "model", "ops"]),
    ("hub", &["config", "digest", "escape", "model::weights", "progress", "secret", "web"]),
    ("scoring", &["config", "data", "model", "objective", "ops"]),
    ("reference", &["config", "data", "digest", "files", "hub", "model", "objective", "ops", "progress", "scoring"]),
    ("gaps", &["config", "data", "objective", "reference"]),
    ("generate", &["adapter", "config", "data", "files", "hub", "model", "ops"]),
    (
        "eval",
        &["config", "data", "digest", "escape", "files", "generate", "hub", "model", "ops::dropout", "progress", "scoring", "text", "web"],
    ),
    (
        "train",
        &[
            "adapter",
            "config",
            "data",
            "device",
            "digest",
            // Questions and answers are shown to people.
            "escape",
            // What canaries are made of: prompts as `mpo eval` reads them, and what can be told of a text without a model that judges.
            "eval::bench",
            "eval::breakdown",
            "eval::item",
            "eval::judge",
            "eval::lines",
            // Shares of answers have the intervals of `mpo eval`.
            "eval::stats",
            "files",
            "generate",
            "hub",
            "interrupt",
            "model",
            "objective",
            "ops",
            "plan",
            "progress",
            "reference",
            "scoring",
        ],
    ),
    (
        "command",
        &[
            "adapter",
            "allocator",
            "cli",
            "config",
            "data",
            "device",
            "digest",
            "escape",
            "eval",
            "files",
            "gaps",
            "generate",
            "hub",
            "interrupt",
            "model",
            "plan",
            "progress",
            "reference",
            "scoring",
            "secret",
            "train",
        ],
    ),
    ("main", &["allocator", "command"]),
];

/// The library's and the binary's files (a build script is neither) with the part before their tests, without comments.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src")];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && path.file_name().is_some_and(|name| name != "build.rs")
            {
                let text = fs::read_to_string(&path).unwrap();
                let code = ["\n#[cfg(test)]", "\n#[cfg(all(test,"].iter().fold(&*text, |code, tests| code.split(tests).next().unwrap());
                let code = code.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
                sources.push((path.strip_prefix(root.join("src")).unwrap().to_owned(), code));
            }
        }
    }
    assert!(sources.len() > 80, "only {} files were found", sources.len());
    sources.sort();
    sources
}

/// `data` of `data/check/text.rs`, `scoring` of `scoring.rs`.
fn module(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// What stands behind every `crate::` (in the binary, `mpo::`): `data::batch` of `crate::data::batch::Segment`; of a list in braces each item.
fn uses(code: &str, root: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let path = |text: &str| {
        let first = word(text);
        let second = text[first.len()..].strip_prefix("::").map(word).unwrap_or_default();
        if second.is_empty() { first } else { format!("{first}::{second}") }
    };
    let mut found = Vec::new();
    for (at, _) in code.match_indices(root) {
        let rest = &code[at + root.len()..];
        match rest.strip_prefix('{') {
            // No list of whole modules has a list within it.
            Some(list) => found.extend(list[..list.find('}').unwrap()].split(',').map(|item| path(item.trim()))),
            None => found.push(path(rest)),
        }
    }
    found.retain(|path| !path.is_empty());
    found
}

#[test]
fn modules_use_only_what_they_may() {
    let mut wrong = Vec::new();
    for (path, code) in sources().into_iter().filter(|(path, _)| path != Path::new("lib.rs")) {
        let own = module(&path);
        let (_, allowed) = MAY_USE.iter().find(|(name, _)| *name == own).unwrap_or_else(|| panic!("`{own}` is not in the table"));
        let root = if own == "main" { "mpo::" } else { "crate::" };
        for used in uses(&code, root) {
            let used_module = used.split("::").next().unwrap();
            let is_allowed = used_module == own || allowed.iter().any(|allowed| used == *allowed || used_module == *allowed);
            if !is_allowed {
                wrong.push(format!("{} uses {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn uses_are_found_in_every_form() {
    let code = "use crate::config::{Gap, Pooling};\nuse crate::{data, hub::Environment};\nlet x = crate::ops::read(y);";
    assert_eq!(uses(code, "crate::"), ["config", "data", "hub::Environment", "ops::read"]);
}

/// `write!` to a locked stream can fail without a panic where nobody reads any more; these macros cannot.
#[test]
fn nothing_prints_by_macro_and_only_the_command_line_writes_to_stdout() {
    for (path, code) in sources() {
        let prints = ["println!", "print!", "dbg!"].iter().any(|print| code.contains(print));
        assert!(!prints, "{} prints", path.display());
        assert!(module(&path) == "command" || !code.contains("stdout()"), "{} writes to stdout", path.display());
    }
}

/// Proxies, keys, redirects and limits are decided at one place.
#[test]
fn nothing_but_web_connects_to_another_machine() {
    for (path, code) in sources() {
        for word in ["ureq::Agent", "Agent::", "ureq::get", "ureq::post", "TcpStream", "hf_hub::api"] {
            assert!(module(&path) == "web" || !code.contains(word), "{} has `{word}`", path.display());
        }
    }
}

#[test]
fn no_file_holds_a_stub_or_a_way_to_panic() {
    let banned = ["todo!", "unimplemented!", "panic!", ".unwrap()", ".expect(", "process::abort"];
    for (path, code) in sources() {
        for word in banned {
            assert!(!code.contains(word), "{} has `{word}`", path.display());
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    for (path, _) in sources() {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(&path)).unwrap();
        assert!(text.starts_with("//! "), "{} does not begin with its purpose", path.display());
        assert!(text.lines().count() < 500, "{} has {} lines: what second thing did it start to do?", path.display(), text.lines().count());
    }
}
