//! Whether a request for an operator route is admitted. There is no authentication. This rule keeps
//! out web pages in an operator's browser, which can send requests to addresses that the pages'
//! authors cannot reach.
//!
//! It prevents two attacks. In *cross-site request forgery*, a page of another site sends a
//! request. The browser reports this in `Sec-Fetch-Site`, or gives the page's origin in `Origin`.
//! In *DNS rebinding*, the author of a page lets its host name point to this process. For the
//! browser this is the same site, so only `Host` reveals it. A host that is an IP address cannot be
//! rebound.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::string::String;
use core::net::IpAddr;

/// A host with an optional port, as in `Host`, in an origin and in a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    host: String,
    port: Option<u16>,
}

impl Authority {
    /// Parses an authority; `None` if it is invalid. Hosts are compared without case and without a
    /// trailing dot.
    ///
    /// ```
    /// use surehook_core::operators::Authority;
    ///
    /// assert_eq!(Authority::parse(b"Ops.Example.:8080").unwrap().host(), "ops.example");
    /// assert_eq!(Authority::parse(b"[::1]:8080").unwrap().host(), "::1");
    /// assert!(Authority::parse(b"user@host").is_none());
    /// ```
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = core::str::from_utf8(bytes).ok()?;
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, after) = rest.split_once(']')?;
                address.parse::<core::net::Ipv6Addr>().ok()?;
                (address, if after.is_empty() { "" } else { after.strip_prefix(':')? })
            }
            None => {
                let (host, port) = text.split_once(':').unwrap_or((text, ""));
                let host = host.strip_suffix('.').unwrap_or(host);
                let is_of_name =
                    |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%".contains(&byte);
                if host.is_empty() || !host.bytes().all(is_of_name) {
                    return None;
                }
                (host, port)
            }
        };
        let port = match port {
            "" => None,
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            _ => return None,
        };
        Some(Self { host: host.to_ascii_lowercase(), port })
    }

    /// The host in lower case. An IPv6 address is without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, if present.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether only programs on this machine can reach the host. Clients never look up `localhost`
    /// in DNS (RFC 6761 §6.3).
    fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.ends_with(".localhost")
            || self.address().is_some_and(|address| address.to_canonical().is_loopback())
    }
}

/// The headers by which a browser describes the origin of a request.
#[derive(Clone, Debug, Default)]
pub struct Said<'a> {
    /// The host that the request names, in its target or in `Host`. `None` if it names none;
    /// browsers always name one.
    pub host: Option<&'a [u8]>,
    /// The values of all `Origin` headers.
    pub origins: &'a [&'a [u8]],
    /// The values of all `Sec-Fetch-Site` headers.
    pub sites: &'a [&'a [u8]],
}

/// Why a request for an operator route is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The host is not one by which operators reach this listener.
    Host,
    /// A page of another site sent the request.
    CrossSite,
}

/// The rule of one listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    is_loopback: bool,
    hosts: BTreeSet<String>,
}

impl Access {
    /// Creates the rule for a listener. `is_loopback` says whether its address is a loopback
    /// address. `hosts` are the configured host names by which operators reach it through a proxy.
    #[must_use]
    pub fn new(is_loopback: bool, hosts: impl IntoIterator<Item = String>) -> Self {
        Self {
            is_loopback,
            hosts: hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect(),
        }
    }

    /// Admits or refuses a request.
    ///
    /// # Errors
    ///
    /// [`Refusal`] says why it is refused.
    pub fn admit(&self, said: &Said<'_>) -> Result<(), Refusal> {
        let host = said.host.map(Authority::parse);
        if let Some(host) = &host
            && !host.as_ref().is_some_and(|host| self.is_known(host))
        {
            return Err(Refusal::Host);
        }
        let same_site = |site: &&[u8]| matches!(*site, b"same-origin" | b"none");
        let own = |origin: &&[u8]| self.is_own(origin, host.as_ref().and_then(Option::as_ref));
        if said.sites.iter().all(same_site) && said.origins.iter().all(own) {
            Ok(())
        } else {
            Err(Refusal::CrossSite)
        }
    }

    /// Loopback hosts and configured hosts are always known. A listener that other machines can
    /// reach also accepts every IP address, and accepts every name if no names are configured.
    fn is_known(&self, host: &Authority) -> bool {
        host.is_loopback()
            || self.hosts.contains(host.host())
            || (!self.is_loopback && (self.hosts.is_empty() || host.address().is_some()))
    }

    /// A page's origin is trusted if it equals the request's host and port. It is also trusted if
    /// it is a configured host with any port, because a proxy may change the `Host` that arrives
    /// here.
    fn is_own(&self, origin: &[u8], host: Option<&Authority>) -> bool {
        let after_scheme = core::str::from_utf8(origin)
            .ok()
            .and_then(|origin| origin.split_once("://"))
            .map(|(_, rest)| rest.to_owned());
        let Some(origin) = after_scheme.and_then(|rest| Authority::parse(rest.as_bytes())) else {
            return false;
        };
        self.hosts.contains(origin.host()) || host == Some(&origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;
    use proptest::prelude::*;

    fn admit(
        access: &Access,
        host: &str,
        origin: Option<&str>,
        site: Option<&str>,
    ) -> Result<(), Refusal> {
        let (origins, sites): (alloc::vec::Vec<_>, alloc::vec::Vec<_>) = (
            origin.iter().map(|text| text.as_bytes()).collect(),
            site.iter().map(|text| text.as_bytes()).collect(),
        );
        access.admit(&Said { host: Some(host.as_bytes()), origins: &origins, sites: &sites })
    }

    const LOOPBACK: [&str; 7] = [
        "127.0.0.1:8080",
        "127.8.8.8",
        "localhost",
        "LocalHost.:80",
        "a.localhost",
        "[::1]:8080",
        "[::ffff:127.0.0.1]",
    ];

    #[test]
    fn a_loopback_listener_accepts_only_loopback_and_configured_hosts() {
        let (alone, behind) =
            (Access::new(true, []), Access::new(true, ["Ops.Example".to_string()]));
        for host in LOOPBACK {
            assert_eq!(admit(&alone, host, None, None), Ok(()), "{host}");
            assert_eq!(admit(&behind, host, None, None), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "0.0.0.0:8080",
            "[::2]",
            "",
            "a b",
            "127.1",
        ] {
            assert_eq!(admit(&alone, host, None, None), Err(Refusal::Host), "{host}");
            assert_eq!(admit(&behind, host, None, None), Err(Refusal::Host), "{host}");
        }
        assert_eq!(admit(&alone, "ops.example", None, None), Err(Refusal::Host));
        assert_eq!(admit(&behind, "OPS.example.:443", None, None), Ok(()));
    }

    #[test]
    fn a_public_listener_accepts_any_name_until_names_are_configured() {
        let (open, named) =
            (Access::new(false, []), Access::new(false, ["ops.example".to_string()]));
        for host in ["surehook", "evil.example", "10.0.0.1:9090", "[fd00::1]:9090", "localhost"] {
            assert_eq!(admit(&open, host, None, None), Ok(()), "{host}");
        }
        for (host, expected) in [
            ("ops.example:9090", Ok(())),
            ("10.0.0.1:9090", Ok(())),
            ("[fd00::1]:9090", Ok(())),
            ("localhost:9090", Ok(())),
            ("evil.example", Err(Refusal::Host)),
        ] {
            assert_eq!(admit(&named, host, None, None), expected, "{host}");
        }
    }

    #[test]
    fn a_page_of_another_site_is_refused_on_every_listener() {
        for access in [Access::new(true, []), Access::new(false, [])] {
            for site in ["cross-site", "same-site", "", "unheard-of"] {
                assert_eq!(
                    admit(&access, "localhost:8080", None, Some(site)),
                    Err(Refusal::CrossSite),
                    "{site}"
                );
            }
            for origin in [
                "http://evil.example",
                "null",
                "",
                "http://localhost:3000",
                "http://localhost",
                "https://",
                "http://localhost:8080/x",
                "file://",
            ] {
                assert_eq!(
                    admit(&access, "localhost:8080", Some(origin), None),
                    Err(Refusal::CrossSite),
                    "{origin}"
                );
            }
            for site in ["same-origin", "none"] {
                assert_eq!(
                    admit(&access, "localhost:8080", Some("http://localhost:8080"), Some(site)),
                    Ok(())
                );
            }
        }
    }

    #[test]
    fn a_page_behind_a_proxy_is_accepted_by_its_configured_name() {
        let access = Access::new(true, ["ops.example".to_string()]);
        assert_eq!(
            admit(&access, "127.0.0.1:8080", Some("https://ops.example"), Some("same-origin")),
            Ok(())
        );
        assert_eq!(
            admit(&access, "127.0.0.1:8080", Some("https://ops.example.evil"), None),
            Err(Refusal::CrossSite)
        );
    }

    #[test]
    fn all_values_of_repeated_headers_are_checked() {
        let access = Access::new(false, []);
        let said = |origins: &[&[u8]], sites: &[&[u8]]| {
            access.admit(&Said { host: Some(b"a"), origins, sites })
        };
        assert_eq!(said(&[b"http://a", b"http://b"], &[]), Err(Refusal::CrossSite));
        assert_eq!(said(&[], &[b"none", b"cross-site"]), Err(Refusal::CrossSite));
        assert_eq!(access.admit(&Said::default()), Ok(()), "browsers always send a host");
    }

    proptest! {
        /// Whatever host name a page has and wherever that name points, a loopback listener accepts
        /// loopback hosts only.
        #[test]
        fn a_loopback_listener_accepts_no_name_except_localhost(name in "[a-zA-Z0-9-]{1,20}(\\.[a-zA-Z0-9-]{1,10}){0,4}\\.?", port in proptest::option::of(any::<u16>())) {
            let host = port.map_or_else(|| name.clone(), |port| format!("{name}:{port}"));
            let lower = name.to_ascii_lowercase();
            let bare = lower.strip_suffix('.').unwrap_or(&lower);
            let is_local = bare == "localhost" || bare.ends_with(".localhost") || bare.parse::<core::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback());
            prop_assert_eq!(admit(&Access::new(true, []), &host, None, None).is_ok(), is_local, "{}", host);
        }

        #[test]
        fn arbitrary_bytes_are_admitted_only_as_loopback_hosts(host in proptest::collection::vec(any::<u8>(), 0..30), origin in proptest::collection::vec(any::<u8>(), 0..30)) {
            let access = Access::new(true, []);
            let said = Said { host: Some(&host), origins: &[&origin], sites: &[] };
            if access.admit(&said).is_ok() {
                prop_assert!(Authority::parse(&host).is_some_and(|host| host.is_loopback()));
            }
        }
    }
}
