//! Tests the rules, the reading of parameters and variables, and the files of certificates.

use super::*;

const AUTHORITY: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/tests/certificates/authority.pem");

/// What the rules make of a mode and a root certificate. In the texts `-` means none.
fn ruled(mode: &str, root: &str) -> Result<(String, String), &'static str> {
    let mode = (mode != "-").then(|| mode.parse().unwrap());
    let root = (root != "-").then(|| Roots::named(OsStr::new(root)).unwrap());
    let (mode, roots) = rules(mode, root)?;
    let roots = match roots {
        None => "-".to_owned(),
        Some(Roots::System) => "system".to_owned(),
        Some(Roots::File(file)) => file.display().to_string(),
    };
    Ok((format!("{mode:?}"), roots))
}

#[test]
fn the_rules_are_those_of_libpq() {
    // The mode and the root certificate that are given, and those that result.
    for row in [
        ["-", "-", "Prefer", "-"],
        ["disable", "-", "Disable", "-"],
        ["allow", "-", "Allow", "-"],
        ["prefer", "-", "Prefer", "-"],
        ["require", "-", "Require", "-"],
        ["verify-full", "-", "VerifyFull", "system"],
        ["-", "f.pem", "Prefer", "-"],
        ["disable", "f.pem", "Disable", "-"],
        ["allow", "f.pem", "Allow", "-"],
        ["prefer", "f.pem", "Prefer", "-"],
        ["require", "f.pem", "VerifyCa", "f.pem"],
        ["verify-ca", "f.pem", "VerifyCa", "f.pem"],
        ["verify-full", "f.pem", "VerifyFull", "f.pem"],
        ["-", "system", "VerifyFull", "system"],
        ["verify-full", "system", "VerifyFull", "system"],
        ["verify-full", "./system", "VerifyFull", "./system"],
    ] {
        let [mode, root, resulting_mode, resulting_root] = row;
        let expected = (resulting_mode.to_owned(), resulting_root.to_owned());
        assert_eq!(ruled(mode, root), Ok(expected), "{row:?}");
    }
    for (mode, root, told) in [
        ("verify-ca", "-", "write `sslrootcert=FILE`, or `sslmode=verify-full`"),
        ("disable", "system", "needs `sslmode=verify-full`"),
        ("allow", "system", "needs `sslmode=verify-full`"),
        ("prefer", "system", "needs `sslmode=verify-full`"),
        ("require", "system", "needs `sslmode=verify-full`"),
        ("verify-ca", "system", "needs `sslmode=verify-full`"),
    ] {
        let refused = ruled(mode, root).unwrap_err();
        assert!(refused.contains(told), "{mode}, {root}: {refused}");
    }
}

fn given(query: &str, variables: &[(&str, &str)]) -> Result<Tls, String> {
    let variable = |name: &str| {
        variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).into())
    };
    Tls::given(query, variable).map_err(|error| error.0)
}

#[test]
fn variables_apply_where_the_url_says_nothing() {
    for (query, variables, mode, roots) in [
        ("", &[("PGSSLMODE", "verify-full")][..], "VerifyFull", Some(Roots::System)),
        ("", &[("PGSSLROOTCERT", "system")], "VerifyFull", Some(Roots::System)),
        (
            "sslmode=require",
            &[("PGSSLROOTCERT", "f.pem")],
            "VerifyCa",
            Some(Roots::File("f.pem".into())),
        ),
        ("sslmode=disable", &[("PGSSLMODE", "verify-full")], "Disable", None),
        ("sslmode=disable", &[("PGSSLMODE", "nonsense")], "Disable", None),
        (
            "sslmode=verify-full&sslrootcert=f.pem",
            &[("PGSSLROOTCERT", "system")],
            "VerifyFull",
            Some(Roots::File("f.pem".into())),
        ),
        ("", &[("PGSSLMODE", ""), ("PGSSLROOTCERT", "")], "Prefer", None),
    ] {
        let tls = given(query, variables).unwrap();
        let found = (format!("{:?}", tls.mode), tls.roots);
        assert_eq!(found, (mode.to_owned(), roots), "{query}: {variables:?}");
    }
}

#[test]
fn a_contradiction_names_the_variables_it_is_from() {
    for (query, variables, told) in [
        ("sslrootcert=system", &[("PGSSLMODE", "require")][..], "(the environment has PGSSLMODE)"),
        (
            "",
            &[("PGSSLMODE", "prefer"), ("PGSSLROOTCERT", "system")],
            "(the environment has PGSSLMODE and PGSSLROOTCERT)",
        ),
        ("", &[("PGSSLMODE", "verify-ca")], "(the environment has PGSSLMODE)"),
        ("", &[("PGSSLMODE", "verify_full")], "`PGSSLMODE`: it must be `disable`"),
        ("", &[("PGSSLROOTCERT", "-----BEGIN CERTIFICATE-----\n")], "`PGSSLROOTCERT`: it is a"),
        ("sslmode=verify-ca", &[], "or `sslmode=verify-full`"),
        ("sslmode=no-verify", &[], "`sslmode`: it must be `disable`"),
        ("sslmode=", &[("PGSSLMODE", "require")], "`sslmode`: it must be `disable`"),
        ("sslrootcert=", &[("PGSSLROOTCERT", "f.pem")], "`sslrootcert`: it is empty"),
    ] {
        let refused = given(query, variables).unwrap_err();
        assert!(refused.contains(told), "{query}: {variables:?}: {refused}");
    }
    let refused = given("sslmode=verify-ca", &[("PGSSLMODE", "prefer")]).unwrap_err();
    assert!(!refused.contains("environment"), "{refused}");
}

#[test]
fn the_last_of_equal_parameters_counts_and_escapes_are_decoded() {
    let tls = given("sslmode=verify-full&ssl-mode=require&ssl-ca=a%20b%2B+c.pem", &[]).unwrap();
    assert_eq!(format!("{:?}", tls.mode), "VerifyCa");
    assert_eq!(tls.roots, Some(Roots::File("a b++c.pem".into())));
    assert!(!tls.verifies_name());
}

#[test]
fn a_root_certificate_without_effect_is_told() {
    for (query, variables, told) in [
        ("sslmode=prefer&sslrootcert=f.pem", &[][..], Some("sslrootcert")),
        ("", &[("PGSSLROOTCERT", "f.pem")], Some("PGSSLROOTCERT")),
        ("sslmode=require&sslrootcert=f.pem", &[], None),
    ] {
        let ignored = given(query, variables).unwrap().ignored();
        assert_eq!(ignored.as_ref().map(|(name, _)| name.as_str()), told, "{query}");
    }
}

#[test]
fn a_socket_has_no_tls() {
    let tls = given("sslmode=verify-full&sslrootcert=/missing.pem", &[]).unwrap();
    for url in ["postgres:///db?host=/run/postgresql", "postgres://%2Frun%2Fpostgresql/db"] {
        let (tls, options) = tls.for_server(url.parse().unwrap()).unwrap();
        assert!(matches!(options.get_ssl_mode(), PgSslMode::Disable), "{url}");
        assert_eq!(tls.roots, None);
    }
}

#[test]
fn a_file_that_is_not_usable_is_refused_with_the_host_and_the_file() {
    let folder = tempfile::TempDir::new().unwrap();
    let authority = std::fs::read_to_string(AUTHORITY).unwrap();
    let damaged = authority.replacen("MII", "III", 1);
    let large = "#".repeat(1 << 20) + &authority;
    for (name, content, told) in [
        ("missing.pem", None, "cannot be read (No such file"),
        ("empty.pem", Some(String::new()), "has no certificate (PEM)"),
        (
            "key.pem",
            Some("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n".into()),
            "has no certificate (PEM)",
        ),
        ("damaged.pem", Some(authority.clone() + &damaged), "is damaged in its certificate 2"),
        ("large.pem", Some(large), "is larger than 1 MiB"),
        (".", None, "is not a regular file"),
    ] {
        let file = folder.path().join(name);
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let query = format!("sslmode=verify-full&sslrootcert={}", file.display());
        let tls = given(&query, &[]).unwrap();
        let refused = tls.for_server("postgres://db.example/x".parse().unwrap()).unwrap_err().0;
        let expected = format!(
            "the certificate of db.example cannot be verified: the file {} of `sslrootcert` {told}",
            file.display()
        );
        assert!(refused.starts_with(&expected), "{refused}");
    }
    assert_eq!(check(Path::new(AUTHORITY)), Ok(()));
}

#[test]
fn authorities_survive_the_way_to_the_driver() {
    let authority = CertificateDer::from_pem_file(AUTHORITY).unwrap();
    let long = CertificateDer::from(vec![7; 1000]);
    let written = pem(&authority) + &pem(&long);
    let read: Vec<_> =
        CertificateDer::pem_slice_iter(written.as_bytes()).map(|read| read.unwrap()).collect();
    assert_eq!(read, [authority, long]);
    assert!(written.lines().all(|line| line.len() <= PEM_LINE));
}

#[test]
fn each_objection_says_what_to_do() {
    use CertificateError as Certificate;
    use rustls::pki_types::{ServerName, UnixTime};
    use std::time::Duration;
    let file = Roots::File("/ca.pem".into());
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let expected = ServerName::try_from("a.example").unwrap();
    for (roots, error, told) in [
        (&file, Certificate::UnknownIssuer, "add its authority to the file"),
        (&Roots::System, Certificate::UnknownIssuer, "write `sslrootcert=FILE`"),
        (
            &file,
            Certificate::ExpiredContext { time: at(7200), not_after: at(3600) },
            "it expired at 1970-01-01T01:00:00Z",
        ),
        (
            &file,
            Certificate::NotValidYetContext { time: at(0), not_before: at(3600) },
            "it is valid from 1970-01-01T01:00:00Z",
        ),
        (
            &file,
            Certificate::NotValidForNameContext { expected, presented: Vec::new() },
            "it is for no name, and not for a.example",
        ),
    ] {
        let objection = roots.objection(&error, "a.example");
        assert!(objection.contains(told), "{objection}");
    }
}
