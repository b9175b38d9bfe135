//! Why TLS with a destination failed: as a class for the history of the event, and in plain words for
//! the log.

use crate::certificates::{date, is_of_an_authority, names};
use rustls::{AlertDescription, CertificateError, Error};
use surehook_core::verdict::DeliveryError;

pub(super) fn classify(error: &Error) -> DeliveryError {
    use CertificateError as Certificate;
    match error {
        Error::InvalidCertificate(certificate) => match certificate {
            Certificate::UnknownIssuer | Certificate::BadSignature => DeliveryError::UnknownIssuer,
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                DeliveryError::CertificateExpired
            }
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                DeliveryError::CertificateNotYetValid
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                DeliveryError::WrongName
            }
            _ => DeliveryError::Tls,
        },
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            DeliveryError::ClientCertificateRequired
        }
        Error::AlertReceived(AlertDescription::NoApplicationProtocol) => DeliveryError::NoHttp1,
        _ => DeliveryError::Tls,
    }
}

/// What has failed, and what to do.
pub(super) fn in_words(error: &Error) -> String {
    use CertificateError as Certificate;
    match error {
        Error::InvalidCertificate(Certificate::ExpiredContext { not_after, .. }) => {
            format!("the certificate expired at {}; renew it", date(*not_after))
        }
        Error::InvalidCertificate(Certificate::NotValidYetContext { not_before, .. }) => format!(
            "the certificate is valid from {}; check the clock of this machine",
            date(*not_before)
        ),
        Error::InvalidCertificate(Certificate::NotValidForNameContext { expected, presented }) => {
            format!(
                "the certificate is for {}, and not for {}; correct `destination` or the certificate",
                names(presented),
                expected.to_str()
            )
        }
        Error::InvalidCertificate(certificate) if is_of_an_authority(certificate) => {
            "the certificate is that of a certificate authority, and not of a server; issue one with `basicConstraints=CA:FALSE`".to_owned()
        }
        Error::InvalidMessage(_) => {
            format!("the destination does not speak TLS on this port ({error})")
        }
        _ => match classify(error) {
            DeliveryError::UnknownIssuer => "no certificate authority that this machine trusts has issued the certificate; for one of your own, set SSL_CERT_FILE, and let the destination send its intermediate certificates".to_owned(),
            DeliveryError::ClientCertificateRequired => "the destination accepts only clients with a certificate, and Surehook has none; put a proxy in front of the destination".to_owned(),
            DeliveryError::NoHttp1 => "the destination does not accept HTTP/1.1, and Surehook does not speak HTTP/2; put a proxy in front of the destination".to_owned(),
            _ => error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{ServerName, UnixTime};
    use std::time::Duration;

    #[track_caller]
    fn check(error: impl Into<Error>, class: DeliveryError, words: &str) {
        let error = error.into();
        assert_eq!(
            (classify(&error), in_words(&error).contains(words)),
            (class, true),
            "{}",
            in_words(&error)
        );
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn each_cause_has_a_class_and_plain_words() {
        use CertificateError as Certificate;
        check(
            Certificate::ExpiredContext { time: at(86_400), not_after: at(3600) },
            DeliveryError::CertificateExpired,
            "the certificate expired at 1970-01-01T01:00:00Z",
        );
        check(
            Certificate::NotValidYetContext { time: at(0), not_before: at(3600) },
            DeliveryError::CertificateNotYetValid,
            "valid from 1970-01-01T01:00:00Z; check the clock",
        );
        let expected = ServerName::try_from("a.example").unwrap();
        let presented = vec!["DnsName(\"b.example\")".to_owned(), "IpAddress(10.0.0.1)".to_owned()];
        check(
            Certificate::NotValidForNameContext { expected, presented },
            DeliveryError::WrongName,
            "the certificate is for b.example, 10.0.0.1, and not for a.example",
        );
        check(Certificate::UnknownIssuer, DeliveryError::UnknownIssuer, "SSL_CERT_FILE");
        check(
            Error::AlertReceived(AlertDescription::CertificateRequired),
            DeliveryError::ClientCertificateRequired,
            "only clients with a certificate",
        );
        check(
            Error::AlertReceived(AlertDescription::NoApplicationProtocol),
            DeliveryError::NoHttp1,
            "does not speak HTTP/2",
        );
        check(
            Error::AlertReceived(AlertDescription::HandshakeFailure),
            DeliveryError::Tls,
            "HandshakeFailure",
        );
    }
}
