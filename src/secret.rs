//! What of an address is nobody else's business: a user with a password, and what a query signs with.
//!
//! An address is shown, logged and stored without them. What stood there reads `hidden`, so that whoever finds the address in a stored
//! configuration is told that a part of it must be given anew.

/// Stands where something was.
const HIDDEN: &str = "hidden";

/// Parameters that choose what is fetched and let nobody in. Whatever is not here may be a key.
const HARMLESS: &[&str] = &[
    "blobs",
    "config",
    "dl",
    "download",
    "expand",
    "export",
    "file",
    "filename",
    "format",
    "inline",
    "lang",
    "length",
    "limit",
    "name",
    "offset",
    "page",
    "path",
    "raw",
    "recursive",
    "ref",
    "rev",
    "revision",
    "split",
    "version",
];

/// A harmless value is a short word.
const LONGEST_WORD: usize = 64;

/// A text with every address in it as it may be shown: without user and password, and with `hidden` for the values of a query and for a fragment,
/// unless the parameter is one that only chooses (`?download=true`).
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, behind) = rest.split_at(at + 3);
        shown += before;
        // Passwords hold nearly every mark; nothing holds these.
        let end = behind.find(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '`' | '<' | '>')).unwrap_or(behind.len());
        let (address, after) = behind.split_at(end);
        shown += &bare(address);
        rest = after;
    }
    shown + rest
}

/// Whether a part of the address in `text` was hidden by [`shown`].
pub fn is_hidden(text: &str) -> bool {
    let Some((_, address)) = text.split_once("://") else { return false };
    let query = address.split_once(['?', '#']).map_or("", |(_, query)| query);
    address.strip_prefix(HIDDEN).is_some_and(|rest| rest.starts_with('@'))
        || query.split(['&', '#']).any(|pair| pair.rsplit('=').next() == Some(HIDDEN))
}

/// What stands behind `://`.
fn bare(address: &str) -> String {
    let (user, address) = split_user(address);
    let (place, more) = address.split_at(address.find(['?', '#']).unwrap_or(address.len()));
    let mut text = if user.is_some() { format!("{HIDDEN}@{place}") } else { place.to_owned() };
    let (query, fragment) = more.split_once('#').map_or((more, None), |(query, fragment)| (query, Some(fragment)));
    if let Some(query) = query.strip_prefix('?') {
        let pairs: Vec<String> = query.split('&').map(pair).collect();
        text += &format!("?{}", pairs.join("&"));
    }
    if fragment.is_some_and(|fragment| !fragment.is_empty()) {
        text += &format!("#{HIDDEN}");
    }
    text
}

/// User and password, and what follows them.
fn split_user(address: &str) -> (Option<&str>, &str) {
    let end = address.find(['/', '?', '#']).unwrap_or(address.len());
    if let Some(at) = address[..end].rfind('@') {
        return (Some(&address[..at]), &address[at + 1..]);
    }
    // A password with a slash that nobody encoded: what looks like a port is none.
    let port = address[..end].rsplit_once(':').map(|(_, port)| port);
    let is_password = port.is_some_and(|port| !port.ends_with(']') && !port.bytes().all(|byte| byte.is_ascii_digit()));
    match address.rfind('@') {
        Some(at) if is_password => (Some(&address[..at]), &address[at + 1..]),
        _ => (None, address),
    }
}

fn pair(pair: &str) -> String {
    let is_word = |value: &str| value.len() <= LONGEST_WORD && value.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-/%".contains(&c));
    match pair.split_once('=') {
        Some((name, value)) if HARMLESS.contains(&name.to_ascii_lowercase().as_str()) && is_word(value) => pair.to_owned(),
        Some((_, "")) => pair.to_owned(),
        Some((name, _)) => format!("{name}={HIDDEN}"),
        None if pair.is_empty() || HARMLESS.contains(&pair.to_ascii_lowercase().as_str()) => pair.to_owned(),
        None => HIDDEN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_passwords_and_signatures_are_hidden_wherever_an_address_stands() {
        for (text, expected) in [
            ("https://user:secret@host/a/b.json?token=secret", "https://hidden@host/a/b.json?token=hidden"),
            ("cannot reach `http://secret@host:80/x`: no", "cannot reach `http://hidden@host:80/x`: no"),
            ("--set data.path=https://u:sec/ret@host/x", "--set data.path=https://hidden@host/x"),
            ("https://host/x?X-Amz-Signature=secret&X-Amz-Date=secret", "https://host/x?X-Amz-Signature=hidden&X-Amz-Date=hidden"),
            ("https://host/x?secret", "https://host/x?hidden"),
            ("https://host/x#access_token=secret", "https://host/x#hidden"),
            ("\"https://u:secret@a/\" and https://b/?k=secret.", "\"https://hidden@a/\" and https://b/?k=hidden"),
            ("socks5://u:secret@proxy:1080", "socks5://hidden@proxy:1080"),
            ("https://u:s@ecret@host/x", "https://hidden@host/x"),
        ] {
            assert_eq!(shown(text), expected);
            assert_eq!(shown(expected), expected, "what is hidden stays so");
        }
    }

    #[test]
    fn what_only_chooses_stays() {
        for text in [
            "no address",
            "https://host/a@b/c",
            "https://host/x.json?download=true",
            "http://[::1]:8000/v1",
            "http://localhost:1/api?blobs=true",
            "a :// b",
            "https://host/x?",
            "https://host:443/a:b@c",
        ] {
            assert_eq!(shown(text), text);
            assert!(!is_hidden(text));
        }
    }

    #[test]
    fn a_stored_address_tells_that_something_is_missing() {
        for text in ["https://u:p@host/x", "https://host/x?sig=1", "https://host/x?1", "https://host/x?raw=1&sig=2#3"] {
            assert!(!is_hidden(text) && is_hidden(&shown(text)), "{text}");
        }
    }
}
