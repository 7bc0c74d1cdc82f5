//! What a path in a configuration is: something built in, an address, a hub id, or a file or folder, which is then stored absolute.

use super::RunConfig;
use anyhow::{Context, Result};
use std::path::Path;

/// `data.template`: the template that the model's own files carry.
pub(crate) const CHECKPOINT_TEMPLATE: &str = "checkpoint";

/// `data.template`: the templates inside the binary, as the released code has them.
pub(crate) const BUILTIN_TEMPLATES: [&str; 3] = ["llama3.1", "gemma", "qwen"];

/// Whether `path` names something inside the binary (`builtin:tiny`).
pub(crate) fn is_builtin(path: &str) -> bool {
    path.starts_with("builtin:")
}

/// Whether `path` is an address (`https://…`).
pub(crate) fn is_address(path: &str) -> bool {
    path.contains("://")
}

/// Whether `path` is a hub id: it has the form `name/name`, and nothing of that name exists here. A name has letters, digits, `-`, `_` and
/// `.`, and begins with a letter, a digit or `_`.
pub fn is_hub_id(path: &str) -> bool {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    };
    matches!(path.split_once('/'), Some((owner, name)) if is_name(owner) && is_name(name)) && !Path::new(path).exists()
}

/// Makes every file and folder absolute, so that the stored configuration means the same from any folder.
///
/// # Errors
/// The current folder cannot be read, or its name is not UTF-8 and could not be written to a TOML file.
pub(crate) fn make_absolute(config: &mut RunConfig) -> Result<()> {
    let named = [
        Some(&mut config.model.path),
        config.reference.path.as_mut(),
        Some(&mut config.data.path),
        config.eval.path.as_mut(),
        config.canary.path.as_mut(),
    ];
    for path in named.into_iter().flatten() {
        if !is_builtin(path) && !is_address(path) && !is_hub_id(path) && !path.is_empty() {
            *path = absolute(path)?;
        }
    }
    if let Some(path) = config.adapter.path.as_mut().filter(|path| !path.is_empty()) {
        *path = absolute(path)?;
    }
    if is_template_file(&config.data.template) {
        config.data.template = absolute(&config.data.template)?;
    }
    if let Some(dir) = config.output.dir.to_str().filter(|dir| !dir.is_empty()) {
        config.output.dir = absolute(dir)?.into();
    }
    Ok(())
}

/// Whether `template` is neither the checkpoint's nor a built-in one.
pub(crate) fn is_template_file(template: &str) -> bool {
    template != CHECKPOINT_TEMPLATE && !BUILTIN_TEMPLATES.contains(&template)
}

fn absolute(path: &str) -> Result<String> {
    let absolute = std::path::absolute(path).with_context(|| format!("`{path}` cannot be made absolute"))?;
    let text = absolute.to_str().with_context(|| format!("the folder's name is not UTF-8: {}", absolute.display()))?;
    Ok(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_id_is_two_names_and_no_folder() {
        for id in ["google/gemma-2-9b-it", "Qwen/Qwen2.5-7B-Instruct", "a/b", "_x/y.z_1"] {
            assert!(is_hub_id(id), "{id}");
        }
        for path in ["gpt2", "./a", "../a", "a/../b", "/a/b", "a/b/c", "a/", "/a", "~/a", "a b/c", "a/.b", "-a/b", "C:\\x/y"] {
            assert!(!is_hub_id(path), "{path}");
        }
        assert!(!is_hub_id("https://a.b/c") && !is_hub_id("builtin:tiny"));
        // Tests run in the package's folder: this one exists.
        assert!(!is_hub_id("src/config"));
    }
}
