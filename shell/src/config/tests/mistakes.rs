//! The exact message and place of each kind of error.

use super::*;

/// Asserts that `text` has exactly one error, with exactly this message.
#[track_caller]
fn check(text: &str, expected: &str) {
    assert_eq!(
        parsed(text).expect_err("an error").to_string(),
        format!("surehook.toml:{expected}")
    );
}

/// The same for one line in `[sources.github]`. It is line 3.
#[track_caller]
fn check_source(line: &str, expected: &str) {
    check(&format!("{SOURCE}{line}\n"), expected);
}

#[test]
fn an_unknown_setting_is_reported_with_a_suggestion() {
    check_source(
        "timout = \"1s\"",
        "3:1: `sources.github.timout`: unknown setting; did you mean `timeout`?",
    );
    check(
        &format!("\n  databse = \"\"\n{SOURCE}"),
        "2:3: `databse`: unknown setting; did you mean `database`?",
    );
    check(
        &format!("[source.x]\n{SOURCE}"),
        "1:2: `source`: unknown setting; did you mean `sources`?",
    );
    check_source(
        "log = \"json\"",
        "3:1: `sources.github.log`: unknown setting here: `log` belongs at the top of the file, before the first `[section]`",
    );
    check(
        &format!("timeout = \"1s\"\n{SOURCE}"),
        "1:1: `timeout`: unknown setting here: `timeout` belongs in `[defaults]`",
    );
    check(
        &format!("{SOURCE}[retention]\nqueued = \"1d\""),
        "4:1: `retention.queued`: unknown setting; the settings here are `dead_lettered`, `delivered`, `delivered_payload`",
    );
    check(
        &format!("{SOURCE}[worker]\n\"a\\nb\" = 1"),
        "4:1: `worker.a\\nb`: unknown setting; the settings here are `max_held_bytes`",
    );
}

#[test]
fn operator_hosts_have_neither_a_scheme_nor_a_port() {
    for (written, shown) in [
        ("ops.example:8080", "ops.example:8080"),
        ("http://ops", "http://ops"),
        ("", ""),
        ("a b", "a b"),
        ("a:", "a:"),
    ] {
        check(
            &format!("operator_hosts = [\"ok\", \"{written}\"]\n{SOURCE}"),
            &format!(
                "1:25: `operator_hosts`: `{shown}` is not a host name: write for example `surehook.example.com`, without a scheme or a port"
            ),
        );
    }
    check(
        &format!("operator_hosts = \"ops\"\n{SOURCE}"),
        "1:18: `operator_hosts`: this is text: write a list of texts in quotes, such as [\"one\", \"two\"]",
    );
    check(
        &format!("operator_hosts = [1]\n{SOURCE}"),
        "1:19: `operator_hosts`: this is a whole number: write text in quotes",
    );
}

#[test]
fn the_lease_cannot_be_set() {
    check_source(
        "lease = \"1s\"",
        "3:1: `sources.github.lease`: the lease cannot be set. It is always `timeout` + 10s, so that it outlasts the delivery: set `timeout` instead",
    );
    let policy = Policy::default();
    assert_eq!(
        policy.lease() - policy.timeout,
        Duration::from_secs(10),
        "the message contains the difference"
    );
}

#[test]
fn durations_are_parsed_and_range_checked() {
    const WRITE: &str = "write a number and a unit, such as `500ms`, `10s` or `1h 30m`";
    check_source(
        "timeout = \"10\"",
        &format!(
            "3:11: `sources.github.timeout`: `10` is not a duration (time unit needed, for example 10sec or 10ms): {WRITE}"
        ),
    );
    check_source(
        "timeout = \"\"",
        &format!("3:11: `sources.github.timeout`: `` is not a duration (value was empty): {WRITE}"),
    );
    check_source(
        "timeout = 10",
        "3:11: `sources.github.timeout`: this is a whole number: write text in quotes",
    );
    check_source(
        "timeout = \"0s\"",
        "3:11: `sources.github.timeout`: `0s` is out of range: write a duration from 1ms to 1h",
    );
    check_source(
        "timeout = \"61m\"",
        "3:11: `sources.github.timeout`: `61m` is out of range: write a duration from 1ms to 1h",
    );
    check_source(
        "max_delay = \"367d\"",
        "3:13: `sources.github.max_delay`: `367d` is out of range: write a duration from 0s to 366days",
    );
    check(
        &format!("{SOURCE}[retention]\ndelivered = \"0s\""),
        "4:13: `retention.delivered`: `0s` is out of range: write a duration from 1s to 36500days",
    );
    check(
        &format!("{SOURCE}[intake]\nbody_timeout = \"0s\""),
        "4:16: `intake.body_timeout`: `0s` is out of range: write a duration from 1ms to 1h",
    );
}

#[test]
fn initial_delay_is_at_most_max_delay() {
    let first = "`initial_delay` (2h) is longer than `max_delay` (1h): raise `max_delay` or lower `initial_delay`";
    check_source(
        "initial_delay = \"2h\"",
        &format!("3:17: `sources.github.initial_delay`: {first}"),
    );
    check(
        &format!("[defaults]\ninitial_delay = \"2h\"\n{SOURCE}"),
        &format!("2:17: `defaults.initial_delay`: {first}"),
    );
    check_source(
        "max_delay = \"1s\"",
        "3:13: `sources.github.max_delay`: `initial_delay` (5s) is longer than `max_delay` (1s): raise `max_delay` or lower `initial_delay`",
    );
    check_source(
        "initial_delay = \"2h\"\nmax_delay = \"400d\"",
        "4:13: `sources.github.max_delay`: `400d` is out of range: write a duration from 0s to 366days",
    );
}

#[test]
fn numbers_are_range_checked() {
    check_source(
        "concurrency = 0",
        "3:15: `sources.github.concurrency`: 0 is out of range: write a whole number from 1 to 10000",
    );
    check_source(
        "concurrency = 10001",
        "3:15: `sources.github.concurrency`: 10001 is out of range: write a whole number from 1 to 10000",
    );
    check_source(
        "concurrency = \"16\"",
        "3:15: `sources.github.concurrency`: this is text: write a whole number, without quotes",
    );
    check_source(
        "rate = 1000001",
        "3:8: `sources.github.rate`: 1000001 is out of range: write a whole number from 0 to 1000000",
    );
    check_source(
        "breaker_failures = -1",
        "3:20: `sources.github.breaker_failures`: -1 is out of range: write a whole number from 0 to 1000000",
    );
    check_source(
        "max_attempts = 0",
        "3:16: `sources.github.max_attempts`: 0 is out of range: write a whole number from 1 to 1000000",
    );
    check_source(
        "max_attempts = -1",
        "3:16: `sources.github.max_attempts`: -1 is out of range: write a whole number from 1 to 1000000",
    );
    check_source(
        "factor = 0.99",
        "3:10: `sources.github.factor`: 0.99 is out of range: write a number from 1.0 to 100.0",
    );
    check_source(
        "factor = 101",
        "3:10: `sources.github.factor`: 101 is out of range: write a number from 1.0 to 100.0",
    );
    check_source(
        "factor = nan",
        "3:10: `sources.github.factor`: NaN is out of range: write a number from 1.0 to 100.0",
    );
    check_source(
        "factor = inf",
        "3:10: `sources.github.factor`: inf is out of range: write a number from 1.0 to 100.0",
    );
    check_source(
        "factor = 1e999",
        "3:10: `sources.github.factor`: inf is out of range: write a number from 1.0 to 100.0",
    );
    check_source(
        "forward_credentials = 1",
        "3:23: `sources.github.forward_credentials`: this is a whole number: write `true` or `false`, without quotes",
    );
    check(
        &format!("{SOURCE}[intake]\nmax_queued = 0"),
        "4:14: `intake.max_queued`: 0 is out of range: write a whole number from 1 to 1000000",
    );
}

#[test]
fn status_codes_are_three_digits() {
    check_source(
        "retry_on = [404, 99]",
        "3:18: `sources.github.retry_on`: not a status code: write whole numbers from 100 to 999",
    );
    check_source(
        "dead_letter_on = [1000]",
        "3:19: `sources.github.dead_letter_on`: not a status code: write whole numbers from 100 to 999",
    );
    check_source(
        "dead_letter_on = [\n  404,\n  \"5xx\",\n]",
        "5:3: `sources.github.dead_letter_on`: not a status code: write whole numbers from 100 to 999",
    );
    check_source(
        "retry_on = 404",
        "3:12: `sources.github.retry_on`: this is a whole number: write a list of status codes, such as [404, 409]",
    );
}

#[test]
fn a_destination_is_an_http_url_and_never_shown_in_errors() {
    const WRITE: &str = "write for example `https://example.com/hooks`";
    let check = |destination: &str, expected: &str| {
        check(
            &format!("[sources.s]\ndestination = \"{destination}\""),
            &format!("2:15: `sources.s.destination`: {expected}: {WRITE}"),
        );
    };
    check("ftp://u:hunter2@x/", "the scheme `ftp` is not supported, only `http` and `https` are");
    check("/hooks", "not a URL (relative URL without a base)");
    check("localhost:9000", "the scheme `localhost` is not supported, only `http` and `https` are");
    check("http://", "not a URL (empty host)");
    check("https://u:hunter2@:80/", "not a URL (empty host)");
    check("https://u:hunter2@x:99999/", "not a URL (invalid port number)");
}

#[test]
fn a_source_needs_a_valid_name_and_a_destination() {
    check(
        "[sources.\"a b\"]\ndestination = \"http://x\"",
        "1:10: `sources.a b`: not a valid source name: use 1 to 64 letters, digits, `-` or `_`",
    );
    check(
        "[sources.s]\ntimeout = \"1s\"",
        "1:10: `sources.s`: the source has no `destination`: add `destination = \"https://…\"`, the URL that receives its events",
    );
    check(
        "[sources]\ns = \"http://x\"",
        "2:5: `sources.s`: this is text: write a section, `[sources.s]`",
    );
    check(
        "[[sources.s]]\ndestination = \"http://x\"",
        "1:1: `sources.s`: this is a list: write a section, `[sources.s]`",
    );
    check("sources = 1", "1:11: `sources`: this is a whole number: write a section, `[sources]`");
}

#[test]
fn serving_needs_a_source_and_migrating_does_not() {
    const MISSING: &str = "`sources`: no source is configured: add `[sources.NAME]` with `destination = \"https://…\"`";
    check("", &format!(" {MISSING}"));
    check("\n[sources]\n", &format!("2:2: {MISSING}"));
    let migrated = parse(
        "surehook.toml",
        b"database = \"sqlite:x.db\"",
        &Overrides::default(),
        &NoSecrets,
        Sources::Optional,
    )
    .unwrap();
    assert_eq!(migrated.database.secret(), "sqlite:x.db");
}

#[test]
fn the_idempotency_key_is_in_no_credential_or_connection_header() {
    for header in ["authorization", "Cookie", "Content-Length", "Connection", "Surehook-Attempt"] {
        let told = parsed(&format!("{SOURCE}idempotency_key = \"header:{header}\""))
            .unwrap_err()
            .to_string();
        assert!(
            told.starts_with(&format!("surehook.toml:3:19: `sources.github.idempotency_key`: `header:{header}` cannot carry the idempotency key")),
            "{told}"
        );
    }
    let chained =
        parsed(&format!("{SOURCE}idempotency_key = \"header:Surehook-Event-Id\"")).unwrap();
    assert_eq!(github(&chained).idempotency_key.to_string(), "header:Surehook-Event-Id");
}

#[test]
fn each_place_of_the_idempotency_key_is_checked() {
    const PLACES: &str = "is not a place for an idempotency key: write `header:NAME`, `json:/POINTER`, `form:FIELD`, `query:NAME`, `body` or `request`";
    for (written, told) in [
        ("\"X-GitHub-Delivery\"", format!("3:19: `sources.github.idempotency_key`: `X-GitHub-Delivery` {PLACES}")),
        ("\"json:/id+/a\"", format!("3:19: `sources.github.idempotency_key`: `/a` {PLACES}")),
        ("[\"json:/id\", \"\"]", format!("3:32: `sources.github.idempotency_key`: `` {PLACES}")),
        (
            "\"header:no name\"",
            "3:19: `sources.github.idempotency_key`: `header:no name` does not name a header: write for example `header:Idempotency-Key`".to_owned(),
        ),
        (
            "\"json:id\"",
            "3:19: `sources.github.idempotency_key`: `json:id` is not a JSON pointer: begin it with `/`, such as `json:/id`".to_owned(),
        ),
        (
            "[]",
            "3:19: `sources.github.idempotency_key`: the list is empty: write at least one place, such as \"header:Idempotency-Key\"".to_owned(),
        ),
        (
            "[\"body\", \"json:/id\"]",
            "3:19: `sources.github.idempotency_key`: every request has a `body`, so the places after it are never used: write it last".to_owned(),
        ),
        (
            "[\"json:/id\", 1]",
            "3:32: `sources.github.idempotency_key`: this is a whole number: write text in quotes, or a list of texts".to_owned(),
        ),
        (
            "true",
            "3:19: `sources.github.idempotency_key`: this is true or false: write text in quotes, or a list of texts".to_owned(),
        ),
    ] {
        check_source(&format!("idempotency_key = {written}"), &told);
    }
    check_source(
        "idempotency_header = \"X\"",
        "3:1: `sources.github.idempotency_header`: unknown setting; did you mean `idempotency_key`?",
    );
}

#[test]
fn a_source_sets_no_header_of_a_connection_or_of_surehook() {
    for (written, told) in [
        (
            "{ Connection = \"close\" }",
            "3:13: `sources.github.headers.Connection`: `Connection` cannot be set: it concerns one connection and not the request; remove it",
        ),
        (
            "{ host = \"x\" }",
            "3:13: `sources.github.headers.host`: `host` cannot be set: each request has its own; remove it",
        ),
        (
            "{ Content_Length = \"1\" }",
            "3:13: `sources.github.headers.Content_Length`: `Content_Length` cannot be set: each request has its own; remove it",
        ),
        (
            "{ Surehook-Source = \"x\" }",
            "3:13: `sources.github.headers.Surehook-Source`: `Surehook-Source` cannot be set: Surehook sets the headers whose names begin with `Surehook-`; remove it",
        ),
        (
            "{ Proxy = \"x\" }",
            "3:13: `sources.github.headers.Proxy`: `Proxy` cannot be set: a CGI program would use it as the address of its proxy; remove it",
        ),
        (
            "{ \"a b\" = \"x\" }",
            "3:13: `sources.github.headers.a b`: `a b` is not the name of a header: write for example `Authorization`",
        ),
        (
            "{ X-A = \"hunter2\\n\" }",
            "3:19: `sources.github.headers.X-A`: not the value of a header, and not shown: write visible ASCII characters and spaces, without a line break",
        ),
        (
            "{ X-A = 1 }",
            "3:19: `sources.github.headers.X-A`: this is a whole number: write text in quotes",
        ),
        (
            "{ X-A = \"1\", x_a = \"2\" }",
            "3:11: `sources.github.headers`: `x_a` is set twice, and spelling makes no difference: keep one of them",
        ),
        (
            "\"Authorization: Bearer hunter2\"",
            "3:11: `sources.github.headers`: this is text: write a table in braces, such as { Name = \"value\" }",
        ),
    ] {
        check_source(&format!("headers = {written}"), told);
    }
    check(
        "[sources.s]\ndestination = \"http://u:p@x/\"\nheaders = { Authorization = \"hunter2\" }",
        "3:11: `sources.s.headers`: the `destination` has a user or a password, which are sent as `Authorization`: remove them, or remove this header",
    );
    check(
        &format!("[defaults]\nheaders = {{ X-A = \"1\" }}\n{SOURCE}"),
        "2:1: `defaults.headers`: unknown setting here: `headers` belongs in `[sources.github]`",
    );
}

#[test]
fn an_answer_is_a_2xx_response_with_a_bounded_body() {
    for (written, told) in [
        (
            "{ status = 301 }",
            "3:21: `sources.github.answer.status`: 301 is out of range: write a whole number from 200 to 299".to_owned(),
        ),
        (
            "{ code = 200 }",
            "3:12: `sources.github.answer.code`: unknown setting; the settings here are `body`, `content_type`, `status`".to_owned(),
        ),
        (
            "200",
            "3:10: `sources.github.answer`: this is a whole number: write a section, `[sources.github.answer]`".to_owned(),
        ),
        (
            "{ content_type = \"text/plain\" }",
            "3:27: `sources.github.answer.content_type`: `content_type` needs a `body`: set `body`, or remove `content_type`, because the default body is JSON".to_owned(),
        ),
        (
            "{ content_type = \"text\", body = \"\" }",
            "3:27: `sources.github.answer.content_type`: `text` is not a media type: write for example `text/plain` or `text/xml; charset=utf-8`".to_owned(),
        ),
        (
            "{ content_type = \"text/plain\\r\\nx: y\", body = \"\" }",
            "3:27: `sources.github.answer.content_type`: `text/plain\\r\\nx: y` is not a media type: write for example `text/plain` or `text/xml; charset=utf-8`".to_owned(),
        ),
        (
            "{ status = 204, body = \"ok\" }",
            "3:33: `sources.github.answer.body`: a response with the status 204 has no body: remove `body`, or set another `status`".to_owned(),
        ),
        (
            &format!("{{ body = \"{}\" }}", "x".repeat(limits::ANSWER_BODY + 1)),
            "3:19: `sources.github.answer.body`: the body is longer than 4.0 KiB: shorten it".to_owned(),
        ),
    ] {
        check_source(&format!("answer = {written}"), &told);
    }
}

#[test]
fn max_body_is_at_most_max_queued_bytes() {
    check(
        &format!("{SOURCE}[intake]\nmax_body = \"65MiB\""),
        "4:12: `intake.max_body`: `max_body` (68157440 bytes) is larger than `max_queued_bytes` (67108864 bytes): raise `max_queued_bytes` or lower `max_body`",
    );
    check(
        &format!("{SOURCE}[intake]\nmax_queued_bytes = \"1kB\""),
        "4:20: `intake.max_queued_bytes`: `max_body` (1048576 bytes) is larger than `max_queued_bytes` (1000 bytes): raise `max_queued_bytes` or lower `max_body`",
    );
    check(
        &format!("{SOURCE}[intake]\nmax_body = \"1GiB\""),
        "4:12: `intake.max_body`: `1GiB` is out of range: write a size from 1B to 256.0 MiB",
    );
    check(
        &format!("{SOURCE}[intake]\nmax_body = 0"),
        "4:12: `intake.max_body`: `0` is out of range: write a size from 1B to 256.0 MiB",
    );
    check(
        &format!("{SOURCE}[intake]\nmax_body = \"big\""),
        "4:12: `intake.max_body`: `big` is not a size: write a number of bytes and a unit, such as `64KiB`, `1MiB` or `2GB`",
    );
    check_source(
        "max_body = \"65MiB\"",
        "3:12: `sources.github.max_body`: `max_body` (68157440 bytes) is larger than `max_queued_bytes` of `[intake]` (67108864 bytes): raise `max_queued_bytes` or lower `max_body`",
    );
    check_source(
        "max_body = \"257MiB\"",
        "3:12: `sources.github.max_body`: `257MiB` is out of range: write a size from 1B to 256.0 MiB",
    );
    // The error of the intake is reported once, and not for each source.
    check(
        &format!("{SOURCE}[intake]\nmax_body = \"3MiB\"\nmax_queued_bytes = \"2MiB\""),
        "4:12: `intake.max_body`: `max_body` (3145728 bytes) is larger than `max_queued_bytes` (2097152 bytes): raise `max_queued_bytes` or lower `max_body`",
    );
}

#[test]
fn the_database_is_not_in_memory_and_never_shown_in_errors() {
    let check = |database: &str, expected: &str| {
        check(
            &format!("database = \"{database}\"\n{SOURCE}"),
            &format!("1:12: `database`: {expected}"),
        );
    };
    check(
        "mysql://root:hunter2@db",
        "not a database URL: write `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`",
    );
    check(
        "surehook.db",
        "not a database URL: write `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`",
    );
    check(
        "postgres://u:hunter2#@db/x",
        "this PostgreSQL URL cannot be used: it has an `@` after its host; write `@ / ? #` in a password as `%40 %2F %3F %23`",
    );
    check(
        "postgres://u:hunter2@a:1,,b/x",
        "this PostgreSQL URL cannot be used: host 2 of its 3 is empty; write `HOST:PORT` between the commas",
    );
    check(
        "postgres://u:hunter2@a,b/x?target_session_attrs=hunter2",
        "this PostgreSQL URL cannot be used: `target_session_attrs` must be `any`, `read-write` or `primary`",
    );
    check("sqlite:", "the SQLite database has no path: write for example `sqlite:surehook.db`");
    for memory in [
        "sqlite::memory:",
        "sqlite://:memory:",
        "sqlite:%3Amemory%3A",
        "sqlite:x?mode=memory",
        "sqlite:x?mode=%6Demory",
        "sqlite:x?vfs=memdb",
        "sqlite:file::memory:",
    ] {
        check(
            memory,
            "an in-memory database loses acknowledged events: write for example `sqlite:surehook.db`",
        );
    }
    for uri in ["sqlite:file:x.db", "sqlite:file:x%3Fmode=memory", "sqlite:%66ile:x%3Fvfs=memdb"] {
        check(
            uri,
            "the SQLite database is named by a `file:` URI and not by its path: write for example `sqlite:surehook.db`",
        );
    }
    let unknown =
        parsed(&format!("database = \"sqlite:x?colour=red\"\n{SOURCE}")).unwrap_err().to_string();
    assert!(unknown.contains("unknown query parameter `colour`"), "{unknown}");
    for right in [
        "sqlite:a.db",
        "sqlite://a/b.db",
        "sqlite:///a/b.db?mode=rw",
        "postgres://db/x",
        "postgresql://u:p@db:1/x?sslmode=require",
        "postgres://a:1,[::1]:2/x?target_session_attrs=primary",
    ] {
        assert_eq!(
            parsed(&format!("database = \"{right}\"\n{SOURCE}")).unwrap().database.secret(),
            right
        );
    }
}

#[test]
fn invalid_toml_is_reported_with_its_place_but_not_its_text() {
    check(&format!("{SOURCE}{SOURCE}"), "3:10: `github` is set twice: keep one of them");
    check("role = \"all\"\nrole = \"all\"", "2:1: `role` is set twice: keep one of them");
    let told = parsed("ü = 1 x\n").unwrap_err().to_string();
    assert!(told.starts_with("surehook.toml:1:1: invalid TOML: "), "{told}");
    let told = parsed("\ndatabase = \"postgres://u:hunter2@db").unwrap_err().to_string();
    assert!(told.starts_with("surehook.toml:2:") && !told.contains("hunter2"), "{told}");
    let latin = problems(
        Config::parse("x", b"log = \"json\"\n# caf\xe9", &Overrides::default(), &NoSecrets)
            .unwrap_err(),
    );
    assert_eq!(latin.to_string(), "x:2:6: the file is not valid UTF-8 from here: save it as UTF-8");
}

#[test]
fn columns_count_characters_but_no_byte_order_mark() {
    check(
        "sources.s = { destination = \"http://ü/\", concurrency = 0 }",
        "1:56: `sources.s.concurrency`: 0 is out of range: write a whole number from 1 to 10000",
    );
    check_source(
        "on_key_reuse = \"ü\" # ü",
        "3:16: `sources.github.on_key_reuse`: `ü` is not a valid value: write `reject` or `first_wins`",
    );
    check(
        &format!("\u{feff}worker = {{ \"ü\" = 1 }}\n{SOURCE}"),
        "1:12: `worker.ü`: unknown setting; the settings here are `max_held_bytes`",
    );
    check(
        "\r\nrole = \"x\"\r\n[sources.s]\r\ndestination = \"http://x\"",
        "2:8: `role`: `x` is not a valid value: write `all` or `intake` or `worker`",
    );
}

#[test]
fn rules_of_relayed_requests_that_are_not_valid_are_refused() {
    let part = "a rule needs exactly one of `header`, `json` and `query`: write for example { json = \"/type\", equals = \"url_verification\" }";
    for (written, place, message) in [
        ("\"GET\"", "3:9", "this is text: write a list in brackets"),
        (
            "[\"get\"]",
            "3:10",
            "`get` is not a method: write \"GET\", \"HEAD\" or \"OPTIONS\", or which requests are relayed, such as { query = \"validationToken\" }",
        ),
        (
            "[\"POST\"]",
            "3:10",
            "`POST` is the method of events: write which of them are relayed, such as { json = \"/type\", equals = \"url_verification\" }",
        ),
        ("[1]", "3:10", "this is a whole number: write text in quotes or a table in braces"),
        ("[{}]", "3:10", part),
        ("[\"GET\", { header = \"a\", query = \"b\" }]", "3:17", part),
        (
            "[{ header = \"a b\" }]",
            "3:10",
            "not the name of a header: write for example { header = \"X-Hook-Secret\" }",
        ),
        (
            "[{ query = \"\" }]",
            "3:10",
            "the parameter has no name: write for example { query = \"validationToken\" }",
        ),
    ] {
        check_source(
            &format!("relay = {written}"),
            &format!("{place}: `sources.github.relay`: {message}"),
        );
    }
    check_source(
        "relay = [{ json = \"type\" }]",
        "3:19: `sources.github.relay.json`: `type` is not a JSON pointer: begin it with `/`, such as \"/type\"",
    );
    check_source(
        "relay = [{ query = \"a\", equal = \"b\" }]",
        "3:25: `sources.github.relay.equal`: unknown setting; did you mean `equals`?",
    );
    check_source(
        "relay_timeout = \"2m\"",
        "3:17: `sources.github.relay_timeout`: `2m` is out of range: write a duration from 1ms to 1m",
    );
    let many = vec!["\"GET\""; 17].join(", ");
    check_source(
        &format!("relay = [{many}]"),
        "3:9: `sources.github.relay`: more than 16 rules: remove some",
    );
}
