//! Which proxy an address is asked through, by the usual variables: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.

use super::address::{Origin, numeric};
use crate::secret::shown;
use anyhow::{Result, bail};
use std::fmt;
use std::net::IpAddr;
use ureq::Proxy;

/// The proxies of this process's environment. `Debug` hides their passwords.
#[derive(Clone, Default)]
pub struct Routes {
    /// Name and value.
    https: Option<(&'static str, String)>,
    http: Option<(&'static str, String)>,
    /// Hosts that are asked directly.
    direct: Vec<String>,
    /// The machine's own name.
    own_name: Option<String>,
}

/// A proxy, and how it is named.
pub(super) struct Through {
    pub proxy: Proxy,
    pub shown: String,
    pub variable: &'static str,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |route: &Option<(&'static str, String)>| route.as_ref().map(|(name, value)| format!("{name}={}", show(value)));
        f.debug_struct("Routes").field("https", &name(&self.https)).field("http", &name(&self.http)).finish_non_exhaustive()
    }
}

/// What needs no scheme is read as if it had one.
fn show(value: &str) -> String {
    let whole = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    shown(&whole).trim_end_matches('/').replace("hidden@", "")
}

impl Routes {
    pub fn from_process() -> Self {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    /// Reads variables through `lookup`, each in capitals first. An empty one counts as unset.
    pub fn from_variables(lookup: &dyn Fn(&str) -> Option<String>) -> Self {
        let value = |name: &str| lookup(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let first = |names: &[&'static str]| names.iter().find_map(|name| Some((*name, value(name)?)));
        let [https, http, all] = [["HTTPS_PROXY", "https_proxy"], ["HTTP_PROXY", "http_proxy"], ["ALL_PROXY", "all_proxy"]];
        let direct = value("NO_PROXY").or_else(|| value("no_proxy")).unwrap_or_default();
        Self {
            https: first(&[https, all, http].concat()),
            http: first(&[http, all, https].concat()),
            direct: direct.split([',', ' ']).map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()).collect(),
            own_name: value("HOSTNAME")
                .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
                .map(|name| name.trim().to_ascii_lowercase()),
        }
    }

    /// # Errors
    /// A proxy is named that cannot be used; going without it would tell the host what it should not know.
    pub(super) fn proxy(&self, origin: &Origin) -> Result<Option<Through>> {
        let Some((variable, value)) = (if origin.is_encrypted() { &self.https } else { &self.http }) else { return Ok(None) };
        if self.is_direct(origin) {
            return Ok(None);
        }
        let (variable, shown) = (*variable, show(value));
        match Proxy::new(value) {
            Ok(proxy) if matches!(proxy.protocol(), ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https) => {
                Ok(Some(Through { proxy, shown, variable }))
            }
            Ok(_) => bail!(
                "{variable} names the proxy `{shown}`, and only http:// and https:// proxies are spoken to; unset it, or name one of those"
            ),
            Err(_) => bail!("{variable} is `{shown}`, which is no proxy's address; one looks like http://proxy:3128"),
        }
    }

    fn is_direct(&self, origin: &Origin) -> bool {
        let host = origin.host.strip_suffix('.').unwrap_or(&origin.host);
        let is_own_name = host.ends_with(".localhost") || self.own_name.as_deref() == Some(host);
        origin.is_this_machine() || is_own_name || self.direct.iter().any(|entry| is_meant(entry, host))
    }
}

/// Whether an entry of `NO_PROXY` means the host: `*`, a host, a domain with all below it, a network (`10.0.0.0/8`).
fn is_meant(entry: &str, host: &str) -> bool {
    let domain = entry.trim_start_matches("*.").trim_start_matches('.');
    let address = numeric(host);
    if let Some((network, bits)) = entry.split_once('/') {
        return address.is_some_and(|address| is_within(address, network, bits));
    }
    let same_address = || address.is_some() && address == numeric(entry.trim_start_matches('[').trim_end_matches(']'));
    entry == "*"
        || host == domain
        || (!domain.is_empty() && host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')))
        || same_address()
}

fn is_within(address: IpAddr, network: &str, bits: &str) -> bool {
    let (Some(network), Ok(bits)) = (numeric(network), bits.parse::<u32>()) else { return false };
    let (address, network, width) = match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    bits <= width && (address ^ network).checked_shr(width - bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(variables: &[(&str, &str)]) -> Routes {
        Routes::from_variables(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    fn way(routes: &Routes, url: &str) -> Option<String> {
        routes.proxy(&Origin::of(url).unwrap()).unwrap().map(|through| format!("{} {}", through.variable, through.shown))
    }

    #[test]
    fn this_machine_is_asked_directly_and_others_through_the_proxy() {
        let routes = routes(&[("HTTP_PROXY", "http://u:secret@proxy:3128"), ("HOSTNAME", "mine")]);
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "127.1", "judge.localhost", "mine", "0.0.0.0"] {
            assert_eq!(way(&routes, &format!("http://{host}:8000/v1")), None, "{host}");
        }
        assert_eq!(way(&routes, "http://example.org/").as_deref(), Some("HTTP_PROXY http://proxy:3128"));
        assert_eq!(way(&routes, "https://example.org/").as_deref(), Some("HTTP_PROXY http://proxy:3128"));
        assert!(!format!("{routes:?}").contains("secret"));
    }

    #[test]
    fn each_scheme_has_its_variable() {
        let routes = routes(&[("https_proxy", "tls:1"), ("HTTP_PROXY", "plain:2"), ("ALL_PROXY", "all:3"), ("NO_PROXY", "")]);
        assert_eq!(way(&routes, "https://a/").as_deref(), Some("https_proxy http://tls:1"));
        assert_eq!(way(&routes, "http://a/").as_deref(), Some("HTTP_PROXY http://plain:2"));
        assert_eq!(way(&super::Routes::default(), "http://a/"), None);
    }

    #[test]
    fn no_proxy_names_hosts_domains_and_networks() {
        let routes = routes(&[("ALL_PROXY", "p:1"), ("NO_PROXY", "example.org, .internal,10.0.0.0/8 192.0.2.7,2001:db8::/32,*.wild.net")]);
        for host in ["example.org", "a.example.org", "x.internal", "10.200.3.4", "192.0.2.7", "[2001:db8::5]", "a.wild.net"] {
            assert_eq!(way(&routes, &format!("http://{host}/")), None, "{host}");
        }
        for host in ["badexample.org", "11.0.0.1", "192.0.2.8", "[2001:db9::5]", "internal.org"] {
            assert!(way(&routes, &format!("http://{host}/")).is_some(), "{host}");
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_not_gone_without() {
        for (value, said) in [("socks5://u:secret@proxy:1080", "only http:// and https://"), ("http://", "no proxy's address")] {
            let error = routes(&[("ALL_PROXY", value)]).proxy(&Origin::of("https://a/").unwrap()).err().unwrap().to_string();
            assert!(error.contains(said) && error.contains("ALL_PROXY") && !error.contains("secret"), "{error}");
        }
    }
}
