//! How connections to PostgreSQL are encrypted, and how the certificate of a server is verified.
//!
//! The rules are those of libpq (PostgreSQL 18, "SSL Support"), with one exception: `verify-full`
//! without `sslrootcert` trusts the system's certificate authorities, and not the file
//! `~/.postgresql/root.crt`. The driver trusts no other authorities than those that it gets from
//! here, see decision 0090.

use super::errors;
use super::parameters::{self, SSLMODE, SSLROOTCERT};
use crate::certificates::{date, is_of_an_authority, names};
use crate::store::OpenError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, RootCertStore};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tokio::task::spawn_blocking;

/// The largest file of certificates, in bytes. Those of a whole system take a quarter of it.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The length of a line in PEM.
const PEM_LINE: usize = 64;

const MODES: &str =
    "it must be `disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`";

// Compiled only if the driver gets no certificate authorities from this crate.
const _: () = assert!(webpki_roots::TLS_SERVER_ROOTS.is_empty());

/// How the servers of a URL are connected to.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    mode: PgSslMode,
    /// What the certificate of a server is verified with. `None`: it is not verified.
    roots: Option<Roots>,
    /// The name of the parameter or variable that names authorities, if it has no effect.
    ignored: Option<&'static str>,
}

/// Where the certificates of the trusted certificate authorities come from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Roots {
    System,
    File(PathBuf),
}

impl Tls {
    /// Reads the parameters of a URL. Environment variables apply where the URL says nothing.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if a value is wrong, or the values contradict each other.
    pub(super) fn given(
        query: &str,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, OpenError> {
        let given = |parameter: &[&'static str], name: &'static str| {
            let in_query = parameters::value(query, parameter).map(|value| {
                let value: Vec<u8> = percent_decode_str(value).collect();
                (parameter[0], OsStr::from_bytes(&value).to_owned())
            });
            // Compose files set a variable to an empty text if it has no value.
            in_query.or_else(|| Some((name, variable(name).filter(|value| !value.is_empty())?)))
        };
        let mode = given(&SSLMODE, "PGSSLMODE");
        let root = given(&SSLROOTCERT, "PGSSLROOTCERT");
        let about = |name: &str, why: &str| OpenError(format!("`{name}`: {why}"));
        let wanted = match &mode {
            Some((name, value)) => {
                // The value is not shown, because a misplaced part of the URL may be a password.
                let mode = value.to_str().and_then(|value| value.parse().ok());
                Some(mode.ok_or_else(|| about(name, MODES))?)
            }
            None => None,
        };
        let named = match &root {
            Some((name, value)) => Some(Roots::named(value).map_err(|why| about(name, why))?),
            None => None,
        };
        let names = [&mode, &root].into_iter().flatten().map(|(name, _)| *name);
        let variables: Vec<&str> = names.filter(|name| name.starts_with("PG")).collect();
        let (mode, roots) = rules(wanted, named).map_err(|why| match variables.as_slice() {
            [] => OpenError(why.to_owned()),
            names => OpenError(format!("{why} (the environment has {})", names.join(" and "))),
        })?;
        let ignored = root.filter(|_| roots.is_none()).map(|(name, _)| name);
        Ok(Self { mode, roots, ignored })
    }

    /// What has no effect, and why.
    pub(super) fn ignored(&self) -> Option<(String, &'static str)> {
        let why = "no certificate is verified without `sslmode=require` or a stronger mode";
        self.ignored.map(|name| (name.to_owned(), why))
    }

    /// Whether the name of a server is verified by its certificate.
    pub(super) fn verifies_name(&self) -> bool {
        matches!(self.mode, PgSslMode::VerifyFull)
    }

    /// Applies this to the options of one server.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if the file of certificates is not usable.
    pub(super) fn for_server(
        &self,
        options: PgConnectOptions,
    ) -> Result<(Self, PgConnectOptions), OpenError> {
        if options.get_socket().is_some() || options.get_host().starts_with('/') {
            // As in libpq. PostgreSQL has no TLS on its sockets.
            let tls = Self { mode: PgSslMode::Disable, roots: None, ignored: None };
            return Ok((tls, options.ssl_mode(PgSslMode::Disable)));
        }
        let options = options.ssl_mode(self.mode);
        let options = match &self.roots {
            Some(Roots::File(file)) => {
                self.check_file(options.get_host()).map_err(OpenError)?;
                // The driver reads the file for each connection, so a new content needs no restart.
                options.ssl_root_cert(file)
            }
            Some(Roots::System) | None => options,
        };
        Ok((self.clone(), options))
    }

    /// Connects to a server. The outer error says why it was not tried.
    pub(super) async fn connect(
        &self,
        options: &PgConnectOptions,
    ) -> Result<Result<PgConnection, sqlx::Error>, String> {
        Ok(if self.roots == Some(Roots::System) {
            let pem = spawn_blocking(of_the_system).await.map_err(|error| error.to_string())??;
            options.clone().ssl_root_cert_from_pem(pem.into_bytes()).connect().await
        } else {
            options.connect().await
        })
    }

    /// Why a server was not connected to, for the log.
    pub(super) fn describe(&self, host: &str, error: &sqlx::Error) -> String {
        // The file may have changed since the start.
        if matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_))
            && let Err(why) = self.check_file(host)
        {
            return why;
        }
        match (&self.roots, refused_certificate(error)) {
            (Some(roots), Some(certificate)) => format!(
                "the certificate of {host} is refused ({roots}): {}",
                roots.objection(certificate, host)
            ),
            _ => errors::describe(error),
        }
    }

    fn check_file(&self, host: &str) -> Result<(), String> {
        let Some(Roots::File(file)) = &self.roots else { return Ok(()) };
        check(file).map_err(|why| {
            let file = file.display();
            format!(
                "the certificate of {host} cannot be verified: the file {file} of `sslrootcert` {why}"
            )
        })
    }
}

/// The mode of the connections, and what certificates are verified with, from what is given. `Err`
/// says what to write instead.
fn rules(
    mode: Option<PgSslMode>,
    named: Option<Roots>,
) -> Result<(PgSslMode, Option<Roots>), &'static str> {
    use PgSslMode::{Allow, Disable, Prefer, Require, VerifyCa, VerifyFull};
    match (mode, named) {
        (None | Some(VerifyFull), Some(Roots::System)) | (Some(VerifyFull), None) => {
            Ok((VerifyFull, Some(Roots::System)))
        }
        (Some(_), Some(Roots::System)) => Err(
            "`sslrootcert=system` needs `sslmode=verify-full`, because the authorities of the system issue certificates to anyone",
        ),
        (Some(VerifyCa), None) => Err(
            "`sslmode=verify-ca` without `sslrootcert` would accept every certificate of a public authority; write `sslrootcert=FILE`, or `sslmode=verify-full`",
        ),
        (Some(VerifyFull), file) => Ok((VerifyFull, file)),
        (Some(Require | VerifyCa), Some(file)) => Ok((VerifyCa, Some(file))),
        (Some(Require), None) => Ok((Require, None)),
        (None, _) => Ok((Prefer, None)),
        (Some(mode @ (Disable | Allow | Prefer)), _) => Ok((mode, None)),
    }
}

impl Roots {
    fn named(value: &OsStr) -> Result<Self, &'static str> {
        if value.is_empty() {
            return Err("it is empty; write the path of a file, or `system`");
        }
        if value.as_bytes().trim_ascii_start().starts_with(b"-----BEGIN") {
            return Err("it is a certificate; write it into a file, and the path of the file here");
        }
        Ok(if value == "system" { Self::System } else { Self::File(value.into()) })
    }

    /// Why a certificate was refused, and what to do.
    fn objection(&self, error: &CertificateError, host: &str) -> String {
        use CertificateError as Certificate;
        match error {
            Certificate::UnknownIssuer | Certificate::BadSignature => match self {
                Self::System => "no authority of this system has issued it; for an authority of your own, write `sslrootcert=FILE`".to_owned(),
                Self::File(_) => "no authority in this file has issued it; add its authority to the file, or let the server send the certificates between".to_owned(),
            },
            Certificate::ExpiredContext { not_after, .. } => {
                format!("it expired at {}; renew it", date(*not_after))
            }
            Certificate::NotValidYetContext { not_before, .. } => {
                format!("it is valid from {}; check the clock of this machine", date(*not_before))
            }
            Certificate::NotValidForNameContext { presented, .. } => format!(
                "it is for {}, and not for {host}; only names in its `subjectAltName` count",
                names(presented)
            ),
            _ if is_of_an_authority(error) => "it is that of a certificate authority, and not of a server; issue one with `basicConstraints=CA:FALSE`".to_owned(),
            _ => error.to_string(),
        }
    }
}

impl fmt::Display for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("sslrootcert=system"),
            Self::File(file) => write!(f, "sslrootcert={}", file.display()),
        }
    }
}

/// Why the certificate of a server was refused, if that is the error.
fn refused_certificate(error: &sqlx::Error) -> Option<&CertificateError> {
    let sqlx::Error::Io(error) = error else { return None };
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(error) => Some(error),
        _ => None,
    }
}

/// Checks that a file has certificates of authorities. An error is a predicate, such as "is empty".
fn check(file: &Path) -> Result<(), String> {
    let cannot_be_read = |error: io::Error| format!("cannot be read ({error})");
    // A pipe or a device could let the start wait without an end.
    if !file.metadata().map_err(cannot_be_read)?.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let mut content = Vec::new();
    let opened = File::open(file).map_err(cannot_be_read)?;
    opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut content).map_err(cannot_be_read)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err("is larger than 1 MiB".to_owned());
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&content) {
        let is_added = certificate.is_ok_and(|certificate| roots.add(certificate).is_ok());
        if !is_added {
            return Err(format!("is damaged in its certificate {}", roots.len() + 1));
        }
    }
    if roots.is_empty() { Err("has no certificate (PEM)".to_owned()) } else { Ok(()) }
}

/// The certificates of the system's authorities in PEM, or those that `SSL_CERT_FILE` and
/// `SSL_CERT_DIR` name. Those that the driver would not understand are left out.
fn of_the_system() -> Result<String, String> {
    let found = rustls_native_certs::load_native_certs();
    let is_usable =
        |root: &&CertificateDer<'_>| RootCertStore::empty().add((*root).clone()).is_ok();
    let pem: String = found.certs.iter().filter(is_usable).map(|root| pem(root)).collect();
    if pem.is_empty() {
        let error = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        return Err(format!(
            "this system has no certificate authorities{error}; install `ca-certificates`, set SSL_CERT_FILE, or write `sslrootcert=FILE`"
        ));
    }
    Ok(pem)
}

fn pem(certificate: &[u8]) -> String {
    let text = STANDARD.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in text.as_bytes().chunks(PEM_LINE) {
        pem.extend(line.iter().copied().map(char::from));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
#[path = "tls/tests.rs"]
mod tests;
