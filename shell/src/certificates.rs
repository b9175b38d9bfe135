//! Parts of messages about a certificate that was refused, for destinations and for PostgreSQL.

use jiff::Timestamp;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;

/// The most names of a certificate that are listed.
const MAX_NAMES: usize = 8;

pub(crate) fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

/// The names of a certificate, in the form `DnsName("a.example")`.
pub(crate) fn names(presented: &[String]) -> String {
    if presented.is_empty() {
        return "no name".to_owned();
    }
    let plain = |name: &String| {
        let name = name.split_once('(').map_or(name.as_str(), |(_, name)| name);
        name.trim_matches(['"', ')']).to_owned()
    };
    let mut names: Vec<String> = presented.iter().take(MAX_NAMES).map(plain).collect();
    if presented.len() > MAX_NAMES {
        names.push(format!("{} others", presented.len() - MAX_NAMES));
    }
    names.join(", ")
}

/// Whether a server's certificate was refused because it is that of a certificate authority.
pub(crate) fn is_of_an_authority(error: &CertificateError) -> bool {
    // webpki has no public error type for this one here.
    let CertificateError::Other(other) = error else { return false };
    format!("{other:?}").contains("CaUsedAsEndEntity")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_certificate_are_bounded() {
        let many: Vec<String> = (0..100).map(|n| format!("DnsName(\"{n}.example\")")).collect();
        assert!(names(&many).ends_with("7.example, 92 others"), "{}", names(&many));
        assert_eq!(names(&[]), "no name");
    }
}
