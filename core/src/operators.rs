//! Whether a request for an operators' route is let in. There is no authentication; what is kept out are the pages in an
//! operator's browser, which can send requests to addresses that their author cannot reach.
//!
//! Two ways are closed. A page of another site sends a request by itself (*cross-site request forgery*): the browser says so
//! in `Sec-Fetch-Site`, or names the page's origin in `Origin`. A page whose own name its author lets point to this process
//! (*DNS rebinding*) is of the same site for the browser, and is known by its `Host` alone. A host that is an IP address
//! cannot be rebound.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::string::String;
use core::net::IpAddr;

/// A host and perhaps a port, as `Host`, an origin and a URL write them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    host: String,
    port: Option<u16>,
}

impl Authority {
    /// Reads one; `None` if it is none. A host is compared without regard to case and without the dot at its end.
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

    /// The host in lower case, an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, if it was written.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether only a program on this machine reaches that host. `localhost` is never asked of a name server (RFC 6761 §6.3).
    fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.ends_with(".localhost")
            || self.address().is_some_and(|address| address.to_canonical().is_loopback())
    }
}

/// What a browser says of a request, in the headers of these names.
#[derive(Clone, Debug, Default)]
pub struct Said<'a> {
    /// The host that the request is for; `None` if it names none, which no browser does.
    pub host: Option<&'a [u8]>,
    /// Each `Origin`.
    pub origins: &'a [&'a [u8]],
    /// Each `Sec-Fetch-Site`.
    pub sites: &'a [&'a [u8]],
}

/// Why an operators' request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its host is not one by which operators reach this listener.
    Host,
    /// A page of another site sent it.
    CrossSite,
}

/// The rule of one listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    is_loopback: bool,
    hosts: BTreeSet<String>,
}

impl Access {
    /// The rule of a listener whose address is a loopback one or not, where operators come through a proxy by these host
    /// names.
    #[must_use]
    pub fn new(is_loopback: bool, hosts: impl IntoIterator<Item = String>) -> Self {
        Self {
            is_loopback,
            hosts: hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect(),
        }
    }

    /// Lets a request in, or says why not.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
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

    /// Loopback hosts and configured ones always are. A listener that other machines reach takes any address, and any name
    /// as long as none is configured.
    fn is_known(&self, host: &Authority) -> bool {
        host.is_loopback()
            || self.hosts.contains(host.host())
            || (!self.is_loopback && (self.hosts.is_empty() || host.address().is_some()))
    }

    /// A page's origin is ours if it is where the request goes, or a configured host, whatever its port: a proxy may change
    /// the `Host` that we see.
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
    fn a_loopback_listener_takes_loopback_hosts_and_configured_ones_only() {
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
    fn a_listener_for_other_machines_takes_any_name_until_names_are_configured() {
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
    fn a_page_behind_a_proxy_is_known_by_the_configured_name() {
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
    fn each_of_several_headers_counts() {
        let access = Access::new(false, []);
        let said = |origins: &[&[u8]], sites: &[&[u8]]| {
            access.admit(&Said { host: Some(b"a"), origins, sites })
        };
        assert_eq!(said(&[b"http://a", b"http://b"], &[]), Err(Refusal::CrossSite));
        assert_eq!(said(&[], &[b"none", b"cross-site"]), Err(Refusal::CrossSite));
        assert_eq!(
            access.admit(&Said::default()),
            Ok(()),
            "no browser sends a request without a host"
        );
    }

    proptest! {
        /// Whatever a page is called and wherever it points its name, only loopback hosts get through to a loopback listener.
        #[test]
        fn no_name_but_localhost_reaches_a_loopback_listener(name in "[a-zA-Z0-9-]{1,20}(\\.[a-zA-Z0-9-]{1,10}){0,4}\\.?", port in proptest::option::of(any::<u16>())) {
            let host = port.map_or_else(|| name.clone(), |port| format!("{name}:{port}"));
            let lower = name.to_ascii_lowercase();
            let bare = lower.strip_suffix('.').unwrap_or(&lower);
            let is_local = bare == "localhost" || bare.ends_with(".localhost") || bare.parse::<core::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback());
            prop_assert_eq!(admit(&Access::new(true, []), &host, None, None).is_ok(), is_local, "{}", host);
        }

        #[test]
        fn any_bytes_can_be_judged(host in proptest::collection::vec(any::<u8>(), 0..30), origin in proptest::collection::vec(any::<u8>(), 0..30)) {
            let access = Access::new(true, []);
            let said = Said { host: Some(&host), origins: &[&origin], sites: &[] };
            if access.admit(&said).is_ok() {
                prop_assert!(Authority::parse(&host).is_some_and(|host| host.is_loopback()));
            }
        }
    }
}
