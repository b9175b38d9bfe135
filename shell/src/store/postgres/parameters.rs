//! The parameters of a PostgreSQL URL. Providers hand out URLs that were written for libpq and other
//! clients. What this program can do is done. What it cannot do is ignored if that does no harm, and
//! refused if it matters.
//!
//! The names and values are those of libpq (PostgreSQL 18, "Parameter Key Words").

/// What is done with a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// The driver does what it says.
    Kept,
    /// [`super::tls`] does what it says. The driver does not get it.
    Tls,
    /// Without effect. The text says why that does no harm.
    Ignored(&'static str),
    /// The text says what to write instead.
    Refused(&'static str),
}

use Treatment::{Ignored, Kept, Refused, Tls};

/// The names of the parameter that says how a connection is encrypted. The first is libpq's.
pub(super) const SSLMODE: [&str; 2] = ["sslmode", "ssl-mode"];

/// The names of the parameter that says which certificate authorities are trusted.
pub(super) const SSLROOTCERT: [&str; 3] = ["sslrootcert", "ssl-root-cert", "ssl-ca"];

/// What is done with a parameter of this name and value. `verifies` is whether the name of the server
/// is verified by its certificate.
pub(super) fn treatment(name: &str, value: &str, verifies: bool) -> Treatment {
    let is = |values: &[&str]| values.contains(&value);
    match name {
        _ if SSLMODE.contains(&name) || SSLROOTCERT.contains(&name) => Tls,
        "sslcert" | "ssl-cert" | "sslkey" | "ssl-key" | "host" | "hostaddr" | "port" | "dbname"
        | "user" | "password" | "application_name" | "options" => Kept,
        _ if is_session_setting(name) => Kept,
        // With 0, the driver would leave a prepared statement at the server for each call.
        "statement-cache-capacity" => {
            Ignored("the program has few statements, and keeps all of them")
        }
        "connect_timeout" => Ignored("connecting has its own time limit"),
        "keepalives"
        | "keepalives_idle"
        | "keepalives_interval"
        | "keepalives_count"
        | "tcp_user_timeout" => Ignored("each call has its own time limit"),
        "fallback_application_name" => Ignored("`application_name` is `surehook` by default"),
        "client_encoding" => Ignored("every session uses UTF-8"),
        "load_balance_hosts" => Ignored("the server that accepts writes is used"),
        "sslsni" => Ignored("the server's name is always sent"),
        "sslcompression" => Ignored("TLS connections are not compressed"),
        "krbsrvname" | "gsslib" | "gssdelegation" => Ignored("GSSAPI is not used"),
        "gssencmode" if is(&["disable", "prefer"]) => Ignored("GSSAPI is not used"),
        "gssencmode" => Refused("GSSAPI is not supported; use TLS: `sslmode=verify-full`"),
        "channel_binding" if is(&["disable", "prefer"]) => Ignored("channel binding is not used"),
        "channel_binding" if verifies => {
            Ignored("`sslmode=verify-full` identifies the server by its certificate")
        }
        "channel_binding" => Refused(
            "channel binding is not supported; `sslmode=verify-full` identifies the server by its certificate",
        ),
        "sslnegotiation" if is(&["postgres"]) => Ignored("this is how TLS connections begin"),
        "sslnegotiation" => Refused("only `postgres` is supported; remove it"),
        "ssl_min_protocol_version" if is(&["TLSv1", "TLSv1.1", "TLSv1.2"]) => {
            Ignored("TLS 1.2 is the oldest version that is used")
        }
        "ssl_min_protocol_version" | "ssl_max_protocol_version" => {
            Refused("TLS 1.2 and 1.3 are used, and that cannot be changed; remove it")
        }
        "requiressl" | "ssl" => Refused("write `sslmode`"),
        "passfile" => Refused("set the environment variable PGPASSFILE"),
        "service" | "servicefile" => Refused("write the values of the service into the URL"),
        "sslcrl" | "sslcrldir" | "sslpassword" | "sslcertmode" | "requirepeer" | "require_auth"
        | "replication" => Refused("it is not supported; remove it"),
        _ => Refused("it is not a parameter of a PostgreSQL URL"),
    }
}

/// A parameter such as `options[search_path]`, a setting of each session.
fn is_session_setting(name: &str) -> bool {
    ["options[", "options%5B", "options%5b"].iter().any(|prefix| name.starts_with(prefix))
}

/// The parameters of a query, as they are written.
pub(super) fn of(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// The value of a parameter that has these names, as it is written. The last one counts, as in libpq.
pub(super) fn value<'a>(query: &'a str, names: &[&str]) -> Option<&'a str> {
    of(query).filter(|(name, _)| names.contains(name)).last().map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// URLs as providers show them, without user and host.
    #[test]
    fn parameters_of_providers_are_accepted() {
        for query in [
            "sslmode=require",
            "sslmode=verify-full&channel_binding=require",
            "sslmode=verify-full&sslrootcert=/etc/ssl/provider.pem",
            "sslmode=require&connect_timeout=10&application_name=web",
            "keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=5",
            "gssencmode=disable&sslsni=1&client_encoding=utf8",
            "options=-c%20search_path%3Dhooks",
            "options%5Bsearch_path%5D=hooks",
            "ssl_min_protocol_version=TLSv1.2&tcp_user_timeout=10000",
            "statement-cache-capacity=0",
        ] {
            for (name, value) in of(query) {
                let done = treatment(name, value, query.contains("verify-full"));
                assert!(!matches!(done, Refused(_)), "{query}: {name}: {done:?}");
            }
        }
    }

    #[test]
    fn what_matters_and_is_not_supported_is_refused_with_a_correction() {
        for (name, value, told) in [
            ("channel_binding", "require", "sslmode=verify-full"),
            ("gssencmode", "require", "sslmode=verify-full"),
            ("ssl", "true", "sslmode"),
            ("passfile", "/etc/passwords", "PGPASSFILE"),
            ("service", "hooks", "into the URL"),
            ("sslnegotiation", "direct", "only `postgres`"),
            ("ssl_min_protocol_version", "TLSv1.3", "TLS 1.2 and 1.3"),
            ("sslmod", "require", "not a parameter"),
        ] {
            let Refused(why) = treatment(name, value, false) else { panic!("{name}={value}") };
            assert!(why.contains(told), "{name}={value}: {why}");
        }
    }
}
