//! Tests the form of a URL with several servers, and the rule that chooses one of them.

use super::*;
use sqlx::ConnectOptions;

fn refusal(url: &str) -> String {
    Servers::parse(url).expect_err(url).to_string()
}

fn names(url: &str) -> Vec<(String, u16)> {
    let servers = Servers::parse(url).unwrap_or_else(|error| panic!("{url}: {error}")).servers;
    servers
        .iter()
        .map(|server| {
            let options = server.entrance.direct();
            (options.get_host().to_owned(), options.get_port())
        })
        .collect()
}

#[test]
fn each_host_can_have_its_own_port() {
    assert_eq!(
        names("postgres://u:p@a:5433,b/db"),
        [("a".to_owned(), 5433), ("b".to_owned(), 5432)]
    );
    assert_eq!(
        names("postgresql://a,b,c:1"),
        [("a".to_owned(), 5432), ("b".to_owned(), 5432), ("c".to_owned(), 1)]
    );
    assert_eq!(
        names("postgres://[::1]:5433,[fe80::1]/db"),
        [("::1".to_owned(), 5433), ("fe80::1".to_owned(), 5432)]
    );
}

#[test]
fn user_database_and_parameters_apply_to_each_host() {
    let servers = Servers::parse(
        "postgres://us%2Cer:pw@a,b:1/data?sslmode=require&target_session_attrs=primary",
    )
    .unwrap();
    assert_eq!(servers.wanted, Wanted::Primary);
    for Server { entrance, .. } in &servers.servers {
        let options = entrance.direct();
        assert_eq!((options.get_username(), options.get_database()), ("us,er", Some("data")));
        assert!(matches!(options.get_ssl_mode(), sqlx::postgres::PgSslMode::Require));
    }
}

#[test]
fn with_several_servers_read_write_is_the_default() {
    for (url, wanted) in [
        ("postgres://a/db", Wanted::Any),
        ("postgres://a/db?target_session_attrs=read-write", Wanted::ReadWrite),
        ("postgres://a,b/db", Wanted::ReadWrite),
        ("postgres://a,b/db?target_session_attrs=any", Wanted::Any),
        ("postgres://a,b/db?sslmode=disable&target_session_attrs=primary", Wanted::Primary),
    ] {
        assert_eq!(Servers::parse(url).unwrap().wanted, wanted, "{url}");
    }
}

#[test]
fn a_malformed_url_is_refused_with_a_correction() {
    for (url, told) in [
        ("postgres://a,,b/db", "host 2 of its 3 is empty"),
        ("postgres://u:p@a,/db", "host 2 of its 2 is empty"),
        ("postgres://a:1,b:x/db", "host 2: it is not of the form"),
        ("postgres://a:1,b:70000/db", "host 2: it is not of the form"),
        ("postgres://[::1,b/db", "host 1: it is not of the form"),
        (
            "postgres://a,b/db?target_session_attrs=standby",
            "selects a read-only server; write `read-write`",
        ),
        ("postgres://a/db?target_session_attrs=", "must be `any`, `read-write` or `primary`"),
        ("postgres://a,b/db?target_session_attrs=any&target_session_attrs=any", "is given twice"),
        ("postgres://a,b/db?port=5433", "`port` cannot name several servers"),
        ("postgres:///db?host=a,b", "`host` cannot name several servers"),
        ("postgres:///db?host=a%2Cb", "`host` cannot name several servers"),
        ("postgres://a,b/db?sslmod=require", "`sslmod`: it is not a parameter"),
        ("postgres://a/db?channel_binding=require", "`channel_binding`: channel binding is not"),
    ] {
        assert!(refusal(url).contains(told), "{url}: {}", refusal(url));
    }
    let many = vec!["a"; MOST_SERVERS + 1].join(",");
    assert!(refusal(&format!("postgres://{many}/db")).contains("17 hosts"));
}

#[test]
fn a_socket_needs_no_host_before_the_path() {
    for (url, user, database) in [
        ("postgres://us%2Fer:p+%26w@/data?host=/run/postgresql", "us/er", "data"),
        ("postgres://u@/data?host=%2Frun%2Fpostgresql", "u", "data"),
        ("postgres:///data?host=/run/postgresql&user=u", "u", "data"),
    ] {
        let servers = Servers::parse(url).unwrap_or_else(|error| panic!("{url}: {error}")).servers;
        let options = servers[0].entrance.direct();
        assert_eq!(
            (options.get_username(), options.get_database()),
            (user, Some(database)),
            "{url}"
        );
        assert_eq!(
            options.get_socket().map(|socket| socket.display().to_string()).as_deref(),
            Some("/run/postgresql"),
            "{url}"
        );
    }
}

#[test]
fn ignored_parameters_are_told_and_not_passed_on() {
    let servers = Servers::parse(
        "postgres://u@a/db?connect_timeout=10&sslmode=verify-full&channel_binding=require&statement-cache-capacity=0",
    )
    .unwrap();
    let ignored: Vec<&str> = servers.ignored.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(ignored, ["connect_timeout", "channel_binding", "statement-cache-capacity"]);
    // The driver's own default: it got no other.
    let url = servers.servers[0].entrance.direct().to_url_lossy();
    assert!(url.query().unwrap().contains("statement-cache-capacity=100"), "{url}");
}

#[test]
fn errors_and_displayed_urls_contain_no_password() {
    for url in [
        "postgres://u:hunter2@a:x,b/db",
        "postgres://u:hunter2,a@b:x,c/db",
        "postgres://u:hunter2,b/db",
        "postgres://u:1/hunter2@a,b/db",
        "postgres://a,b/db?target_session_attrs=hunter2",
        "postgres://a/db?channel_binding=hunter2",
        "postgres://a/db?sslmode=hunter2",
        "postgres://a,b/db?target_session_attrs=any&target_session_attrs=hunter2",
    ] {
        assert!(!refusal(url).contains("hunter2"), "{url}: {}", refusal(url));
    }
    for (url, expected) in [
        (
            "postgres://u:hunter2@a:1,[::1]:2/db?password=hunter2&target_session_attrs=primary",
            "postgres://u@a:1,[::1]:2/db?target_session_attrs=primary",
        ),
        ("postgres://u@a/db?sslkey=hunter2#hunter2", "postgres://u@a/db"),
        ("postgres://:hunter2@a,b", "postgres://a,b"),
        ("postgres://u:hunter2:hunter2@a@b/db?target_session_attrs=hunter2", "postgres://u@b/db"),
        ("postgresql:///db?host=/run/postgresql", "postgresql:///db"),
    ] {
        assert_eq!(shown(url).as_deref(), Some(expected), "{url}");
    }
    assert_eq!(shown("postgres://u:1/hunter2@a/db"), None);
}

const PRIMARY: Standing = Standing { system: 7, timeline: 1, in_recovery: false, read_only: false };
const STANDBY: Standing = Standing { in_recovery: true, read_only: true, ..PRIMARY };

fn known(system: i64, timeline: i64) -> Option<Lineage> {
    Some(Lineage { system, timeline })
}

fn on(timeline: i64, standing: Standing) -> Standing {
    Standing { timeline, ..standing }
}

#[test]
fn a_read_only_server_is_skipped() {
    let read_only = Standing { read_only: true, ..PRIMARY };
    assert_eq!(
        judge(Wanted::ReadWrite, None, &[(0, STANDBY), (1, read_only), (2, PRIMARY)]),
        (Ok(2), known(7, 1))
    );
    // `primary` accepts a primary whose sessions are read-only by default.
    assert_eq!(judge(Wanted::Primary, None, &[(0, STANDBY), (1, read_only)]).0, Ok(1));
    let (refused, lineage) = judge(Wanted::ReadWrite, None, &[(0, STANDBY), (1, read_only)]);
    assert_eq!(
        refused,
        Err(vec![(0, "it is a standby".to_owned()), (1, "it is set to read-only".to_owned())])
    );
    assert_eq!(lineage, known(7, 1));
    assert_eq!(judge(Wanted::ReadWrite, known(7, 3), &[]), (Err(vec![]), known(7, 3)));
}

#[test]
fn the_server_that_was_promoted_last_is_used() {
    assert_eq!(
        judge(Wanted::ReadWrite, None, &[(0, PRIMARY), (1, on(2, PRIMARY))]),
        (Ok(1), known(7, 2))
    );
    assert_eq!(
        judge(Wanted::ReadWrite, known(7, 1), &[(1, on(2, PRIMARY)), (0, PRIMARY)]),
        (Ok(1), known(7, 2))
    );
    assert_eq!(
        judge(Wanted::ReadWrite, None, &[(1, PRIMARY), (0, PRIMARY)]).0,
        Ok(1),
        "the first that answered"
    );
}

#[test]
fn an_old_primary_is_refused_even_if_its_successor_is_silent() {
    let (refused, lineage) = judge(Wanted::ReadWrite, known(7, 2), &[(0, PRIMARY)]);
    let objection =
        "refused as an old primary: its timeline is 1, and another server has timeline 2";
    assert_eq!((refused, lineage), (Err(vec![(0, objection.to_owned())]), known(7, 2)));
    // A standby of the successor reveals the old primary, too.
    let (refused, lineage) = judge(Wanted::Primary, None, &[(0, PRIMARY), (2, on(2, STANDBY))]);
    assert_eq!((refused.unwrap_err()[0].1.as_str(), lineage), (objection, known(7, 2)));
}

#[test]
fn timelines_of_different_clusters_are_not_compared() {
    let other = Standing { system: 8, ..PRIMARY };
    assert_eq!(judge(Wanted::ReadWrite, known(7, 5), &[(0, other)]), (Ok(0), known(8, 1)));
    assert_eq!(
        judge(Wanted::ReadWrite, known(7, 5), &[(0, on(9, other)), (1, on(5, PRIMARY))]),
        (Ok(1), known(7, 5))
    );
}

#[test]
fn a_pooler_in_the_url_decides_how_sessions_are_opened() {
    for (url, is_pooled) in [
        ("postgres://a/db", false),
        ("postgres://a/db?pooler=none", false),
        ("postgres://a/db?pooler=transaction&options=-c%20search_path%3Dx", true),
    ] {
        let servers = Servers::parse(url).unwrap();
        assert_eq!(servers.is_pooled(), is_pooled, "{url}");
        servers.lost();
        assert_eq!(servers.is_pooled(), is_pooled, "{url}, after it was lost");
    }
    let refused = Servers::parse("postgres://a/db?pooler=session").unwrap_err();
    assert!(refused.0.contains("`pooler` must be"), "{}", refused.0);
    let refused = Servers::parse("postgres://a/db?options=-d5").unwrap_err();
    assert!(refused.0.contains("-c name=value"), "{}", refused.0);
}
