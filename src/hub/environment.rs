//! Where the caches are and how the hub is reached: the environment variables of `huggingface_hub`, and `MPO_CACHE`.

use crate::progress::say;
use crate::web::Routes;
use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Everything outside the configuration that decides where files come from.
#[derive(Debug, Clone)]
pub struct Environment {
    /// `HF_HUB_CACHE`, else `HF_HOME/hub` (by default in the user's cache folder): shared with transformers.
    pub hub_cache: PathBuf,
    /// `MPO_CACHE`, else `mpo` in the user's cache folder.
    pub mpo_cache: PathBuf,
    /// `HF_ENDPOINT`, without a slash at the end.
    pub endpoint: String,
    /// `HF_TOKEN`, else the file that `hf auth login` writes (`HF_TOKEN_PATH`, else `HF_HOME/token`).
    pub token: Option<Token>,
    /// `HF_HUB_OFFLINE`: nothing is requested from anywhere.
    pub offline: bool,
    /// The proxies of `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    pub routes: Routes,
    /// Pause before the first of several attempts to go on with an interrupted transfer; doubled each time.
    pub retry_delay: Duration,
}

/// A hub token. It is sent to the endpoint's host only, and never printed: there is no `Display`, and `Debug` hides it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// `None` for a blank one.
    pub fn new(token: &str) -> Option<Self> {
        let token = token.trim();
        (!token.is_empty()).then(|| Self(token.to_owned()))
    }

    pub(super) fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

impl Environment {
    /// Reads the variables of this process.
    pub fn from_process() -> Result<Self> {
        Self::from_variables(&|name| std::env::var_os(name))
    }

    /// Reads variables through `lookup`. An empty variable counts as unset.
    pub fn from_variables(lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let variable = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let text = |name: &str| variable(name).and_then(|value| value.into_string().ok());
        let is_on = |name| text(name).is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"));

        let user_cache = user_cache_dir(&path);
        let mpo_cache = match path("MPO_CACHE") {
            Some(cache) => cache,
            None => user_cache.context("cannot tell where the user's cache folder is; set MPO_CACHE to a folder")?.join("mpo"),
        };
        // huggingface_hub uses ~/.cache on every system.
        let unix_cache = path("XDG_CACHE_HOME").or_else(|| home(&path).map(|home| home.join(".cache")));
        let hub_home = path("HF_HOME").or_else(|| unix_cache.map(|cache| cache.join("huggingface")));
        let in_home = || hub_home.as_ref().map(|home| home.join("hub"));
        // Without a home folder, as services often are, everything lies in our own cache.
        let hub_cache = path("HF_HUB_CACHE").or_else(in_home).unwrap_or_else(|| mpo_cache.join("huggingface/hub"));
        let token_file = path("HF_TOKEN_PATH").or_else(|| hub_home.map(|home| home.join("token")));
        let token = match text("HF_TOKEN").as_deref().and_then(Token::new) {
            // As of the hub's own tools: a token is sent to whom it is meant for only, and then to nobody.
            _ if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            Some(token) => Some((token, "HF_TOKEN".to_owned())),
            None => token_file.and_then(|file| Some((read_token(&file)?, format!("`{}`", file.display())))),
        };
        let is_whole = |token: &Token| token.0.chars().all(|c| c.is_ascii_graphic());
        if let Some((token, place)) = &token {
            ensure!(is_whole(token), "{place} holds a space, a line break or a letter that no token has; is all of it the token?");
        }
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        Ok(Self {
            hub_cache,
            mpo_cache,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.map(|(token, _)| token),
            routes: Routes::from_variables(&|name| text(name)),
            offline: is_on("HF_HUB_OFFLINE"),
            retry_delay: Duration::from_secs(1),
        })
    }
}

/// A file that is not there is no token: whoever is not logged in has none. One that is there and may not be read is said.
fn read_token(file: &Path) -> Option<Token> {
    match std::fs::read_to_string(file) {
        Ok(text) => Token::new(&text),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
        Err(error) => {
            say(&format!("note: the hub's token in `{}` cannot be read ({error}); going on without one", file.display()));
            None
        }
    }
}

fn home(path: &dyn Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    path(if cfg!(windows) { "USERPROFILE" } else { "HOME" })
}

fn user_cache_dir(path: &dyn Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if cfg!(windows) {
        path("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        home(path).map(|home| home.join("Library/Caches"))
    } else {
        path("XDG_CACHE_HOME").or_else(|| home(path).map(|home| home.join(".cache")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::from_variables(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))).unwrap()
    }

    #[test]
    fn a_variable_wins_over_what_it_refines() {
        let plain = environment(&[("HOME", "/home/u")]);
        assert_eq!(plain.hub_cache, Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!((plain.endpoint.as_str(), plain.offline, plain.token.is_none()), ("https://huggingface.co", false, true));
        let home = environment(&[("HOME", "/home/u"), ("HF_HOME", "/hf"), ("MPO_CACHE", "/mpo"), ("HF_ENDPOINT", "https://mirror/")]);
        assert_eq!((home.hub_cache.as_path(), home.mpo_cache.as_path()), (Path::new("/hf/hub"), Path::new("/mpo")));
        assert_eq!(home.endpoint, "https://mirror");
        let cache = environment(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/cache"), ("MPO_CACHE", "/mpo"), ("HF_HUB_OFFLINE", "true")]);
        assert_eq!(cache.hub_cache, Path::new("/cache"));
        assert!(cache.offline);
        assert!(!environment(&[("HOME", "/home/u"), ("HF_HUB_OFFLINE", "0")]).offline);
    }

    #[test]
    fn the_token_comes_from_the_variable_or_the_file_and_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let home = dir.path().to_str().unwrap();
        let from_file = environment(&[("HF_HOME", home), ("MPO_CACHE", home)]);
        assert_eq!(from_file.token.as_ref().unwrap().authorization(), "Bearer hf_file");
        let from_variable = environment(&[("HF_HOME", home), ("MPO_CACHE", home), ("HF_TOKEN", " hf_variable ")]);
        assert_eq!(from_variable.token.as_ref().unwrap().authorization(), "Bearer hf_variable");
        assert!(!format!("{from_variable:?}{from_file:?}").contains("hf_"));
        assert!(environment(&[("HOME", "/nowhere"), ("HF_TOKEN", " ")]).token.is_none());
        let disabled = [("HOME", "/nowhere"), ("HF_TOKEN", "hf_x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")];
        assert!(environment(&disabled).token.is_none());
        let torn = Environment::from_variables(&|name| ["HOME", "HF_TOKEN"].contains(&name).then(|| "hf_a\nhf_b".into()));
        let error = torn.unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN holds") && !error.contains("hf_a"), "{error}");
    }

    #[test]
    fn no_home_names_the_variable_to_set() {
        let error = Environment::from_variables(&|_| None).unwrap_err().to_string();
        assert!(error.contains("MPO_CACHE"), "{error}");
        assert_eq!(environment(&[("MPO_CACHE", "/mpo")]).hub_cache, Path::new("/mpo/huggingface/hub"), "and that is enough");
    }
}
