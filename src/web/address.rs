//! Whom an address means.

use crate::secret::shown;
use anyhow::{Result, bail, ensure};
use std::fmt;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use ureq::http::Uri;

/// Scheme, host and port: who a key is meant for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: Scheme,
    /// Lower-case; an IPv6 address without brackets.
    pub(super) host: String,
    port: u16,
    /// Whether the address holds a user or a password.
    pub(super) has_user: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

impl Origin {
    /// # Errors
    /// It is no address of a web server.
    pub fn of(url: &str) -> Result<Self> {
        let no_address = || format!("`{}` is no address; one begins with https:// and a host", shown(url));
        let Ok(uri) = url.parse::<Uri>() else { bail!(no_address()) };
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ => bail!(no_address()),
        };
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        ensure!(!host.is_empty(), no_address());
        let port = uri.port_u16().unwrap_or(if scheme == Scheme::Https { 443 } else { 80 });
        Ok(Self { scheme, host, port, has_user: uri.authority().is_some_and(|authority| authority.as_str().contains('@')) })
    }

    pub fn is_encrypted(&self) -> bool {
        self.scheme == Scheme::Https
    }

    /// Whether what is said to it does not leave this machine.
    pub fn is_this_machine(&self) -> bool {
        is_this_machine(&self.host)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_encrypted() { "https" } else { "http" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        write!(f, "`{scheme}://{host}:{}`", self.port)
    }
}

/// Whether a host is this machine: `localhost`, a loopback address however it is spelt (`127.1`), or an address of one of its own interfaces. A name
/// that has to be looked up may be anybody's.
pub fn is_this_machine(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = host.strip_suffix('.').unwrap_or(host);
    name.eq_ignore_ascii_case("localhost") || numeric(host).is_some_and(is_own)
}

/// An address in figures. The short and hexadecimal forms are those of the system's own functions, which look up no name for them.
pub(super) fn numeric(host: &str) -> Option<IpAddr> {
    let is_figure = |part: &str| match part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
        Some(hex) => !hex.is_empty() && hex.bytes().all(|c| c.is_ascii_hexdigit()),
        None => !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit()),
    };
    let by_the_system = || host.split('.').all(is_figure).then(|| (host, 0).to_socket_addrs().ok()?.next().map(|address| address.ip()));
    let address = host.parse().ok().or_else(|| by_the_system().flatten())?;
    Some(match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        v4 => v4,
    })
}

/// Only an address of the machine can be bound.
fn is_own(address: IpAddr) -> bool {
    let is_of_many = address.is_multicast() || matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    address.is_loopback() || (!is_of_many && UdpSocket::bind((address, 0)).is_ok())
}

/// The address that a `Location` within an answer from `url` means.
pub(super) fn join(url: &str, location: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return location.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // A password in the address is for whom it was given to.
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if location
        .split_once(':')
        .is_some_and(|(scheme, _)| !scheme.is_empty() && scheme.bytes().all(|c| c.is_ascii_alphanumeric() || b"+.-".contains(&c)))
    {
        return location.to_owned();
    }
    if location.starts_with("//") {
        return format!("{scheme}:{location}");
    }
    if location.starts_with('/') {
        return format!("{scheme}://{host}{location}");
    }
    let path = rest[authority.len()..].split(['?', '#']).next().unwrap_or_default();
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("{scheme}://{host}{folder}/{location}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_many_names() {
        for host in
            ["localhost", "LOCALHOST.", "127.0.0.1", "127.8.9.1", "::1", "[::1]", "127.1", "0x7f.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"]
        {
            assert!(is_this_machine(host), "{host}");
        }
        for host in
            ["192.0.2.1", "203.0.113.7", "localhost.example.org", "127.0.0.1.example.org", "example.org", "224.0.0.1", "", "2001:db8::1"]
        {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn another_port_or_scheme_is_another_origin() {
        let origin = |url: &str| Origin::of(url).unwrap();
        assert_eq!(origin("https://host/a"), origin("https://HOST:443/b?c"));
        assert_ne!(origin("https://host"), origin("https://host:8443"));
        assert_ne!(origin("http://host:443"), origin("https://host:443"));
        assert_eq!(origin("http://[::1]:80/").to_string(), "`http://[::1]:80`");
        for text in ["host", "ftp://host/", "https://", "file:///etc/hosts", "https:///x", "\u{1b}[31m"] {
            assert!(Origin::of(text).is_err(), "{text}");
        }
        let error = Origin::of("ftp://u:secret@host").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn a_location_is_read_beside_the_address_that_gave_it() {
        let url = "https://u:p@host:1/a/b?c#d";
        for (location, to) in [
            ("/x?y", "https://host:1/x?y"),
            ("x", "https://host:1/a/x"),
            ("//other/x", "https://other/x"),
            ("http://other", "http://other"),
            ("file:///etc/hosts", "file:///etc/hosts"),
        ] {
            assert_eq!(join(url, location), to);
        }
    }
}
