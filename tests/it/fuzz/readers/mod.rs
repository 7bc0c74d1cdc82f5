//! All readers: what they are given, in which words, and how.

mod checkpoint;
mod data;
mod eval;
mod remote;
mod run;
mod settings;

use super::random::Random;
use super::shape::Shape;
use anyhow::Result;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};

/// What was read, in any words that are the same for the same; or the error that a user is shown.
pub type Read = Box<dyn FnMut(&[u8]) -> Result<String>>;

pub struct Reader {
    /// As commands and files know it.
    pub name: &'static str,
    shape: Shape,
    /// Good inputs, which are changed.
    seeds: Box<dyn Fn() -> Vec<Vec<u8>>>,
    /// Words of the reader's own language.
    tokens: &'static [&'static str],
    /// Makes, in a folder of its own, everything around the input.
    pub open: Box<dyn Fn(&Path) -> Read>,
    made: OnceCell<Vec<Vec<u8>>>,
}

impl Reader {
    fn new(
        name: &'static str,
        shape: Shape,
        seeds: impl Fn() -> Vec<Vec<u8>> + 'static,
        tokens: &'static [&'static str],
        open: impl Fn(&Path) -> Read + 'static,
    ) -> Self {
        Self { name, shape, seeds: Box::new(seeds), tokens, open: Box::new(open), made: OnceCell::new() }
    }

    /// The input of this seed and index.
    pub fn input(&self, seed: u64, index: u64) -> Vec<u8> {
        let seeds = self.made.get_or_init(&self.seeds);
        self.shape.input(&mut Random::of(seed, self.name, index), seeds, self.tokens)
    }
}

pub fn all() -> Vec<Reader> {
    [settings::readers(), data::readers(), checkpoint::readers(), run::readers(), eval::readers(), remote::readers()]
        .into_iter()
        .flatten()
        .collect()
}

/// A file of the repository.
fn file(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Copies files of the repository into `folder`.
fn copy(folder: &Path, from: &str, names: &[&str]) {
    for name in names {
        std::fs::write(folder.join(name), file(&format!("{from}/{name}"))).unwrap();
    }
}

/// Texts as seeds.
fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// The first lines of a file of the repository.
fn head(path: &str, n_lines: usize) -> Vec<u8> {
    let text = String::from_utf8(file(path)).unwrap();
    text.lines().take(n_lines).collect::<Vec<_>>().join("\n").into_bytes()
}

/// A reader of one file `name` in its folder.
fn of_file(folder: &Path, name: &str, mut read: impl FnMut(&Path) -> Result<String> + 'static) -> Read {
    let path: PathBuf = folder.join(name);
    Box::new(move |input| {
        std::fs::write(&path, input).unwrap();
        read(&path)
    })
}
