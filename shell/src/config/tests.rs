//! The documented defaults, precedence, and rules for every file.

mod documents;
mod mistakes;
mod producers;
mod secrets;

use super::*;
use http::HeaderName;
use proptest::prelude::*;
use surehook_core::backoff::Backoff;
use surehook_core::breaker::BreakerPolicy;
use surehook_core::key::places::Entry;
use surehook_core::key::pointer::Pointer;

/// The variables and files that configurations of tests can name.
struct Known;

impl Secrets for Known {
    fn variable(&self, name: &str) -> Result<String, String> {
        match name {
            "TOKEN" | "BILLING_PASSWORD" => Ok("hunter2".to_owned()),
            "HOST" => Ok("hunter2.example".to_owned()),
            "QUOTE" => Ok("hunter2\"\n[sources.x]".to_owned()),
            "TIME" => Ok("17s".to_owned()),
            _ => Err("is not set".to_owned()),
        }
    }

    fn file(&self, path: &str) -> Result<String, String> {
        match path {
            "/run/secrets/token" | "/run/secrets/database_password" => Ok("hunter2\n".to_owned()),
            "/run/secrets/database" => Ok("postgres://u:hunter2@db/x\n".to_owned()),
            _ => Err("cannot be read (no such file)".to_owned()),
        }
    }
}

/// A valid file, to which a test adds its error.
const SOURCE: &str = "[sources.github]\ndestination = \"https://hooks.internal/github\"\n";

fn parsed(text: &str) -> Result<Config, SettingErrors> {
    parsed_over(text, &Overrides::default())
}

fn parsed_over(text: &str, overrides: &Overrides) -> Result<Config, SettingErrors> {
    Config::parse("surehook.toml", text.as_bytes(), overrides, &Known).map_err(problems)
}

fn problems(error: ConfigError) -> SettingErrors {
    let ConfigError::Wrong(problems) = error else { panic!("{error}") };
    problems
}

fn github(config: &Config) -> &Source {
    &config.sources["github"]
}

#[test]
fn a_file_with_only_a_source_has_the_defaults() {
    let source = Source::new(Destination::new("https://hooks.internal/github".parse().unwrap()));
    assert_eq!(
        parsed(SOURCE).unwrap(),
        Config {
            sources: BTreeMap::from([(SourceName::parse("github").unwrap(), source)]),
            ..Config::default()
        }
    );
}

#[test]
fn every_value_can_be_set() {
    let config = parsed(
        r#"
        listen = "[::]:80"
        operator_listen = "127.0.0.1:9090"
        operator_hosts = ["Ops.Example", "[::1]", "fd00::1"]
        database = "postgres://u:p@db/surehook"
        role = "worker"
        log = "json"
        drain_timeout = "0s"
        shutdown_grace = "5m"
        migrate_on_start = false
        intake = { max_body = 100, max_queued = 1, max_queued_bytes = "1kB", max_connections = 2, header_timeout = "1ms", idle_timeout = "2ms", body_timeout = "1h" }
        worker = { max_held_bytes = "3KiB" }
        [retention]
        delivered = "1s"
        delivered_payload = "2s"
        dead_lettered = "36500d"
        [sources.github]
        producer = "stripe"
        destination = "http://u:p@[::1]:9000/x?token=t"
        headers = { X-Tenant = "acme", x-b = "" }
        max_body = "1kB"
        timeout = "1h"
        concurrency = 10_000
        rate = 1_000_000
        breaker_failures = 0
        breaker_refusals = 1_000_000
        breaker_open = "1h"
        max_attempts = 0xF4240
        initial_delay = "0s"
        factor = 1
        max_delay = "366d"
        retry_on = [404, 400]
        dead_letter_on = [999]
        relay = ["GET", { header = "X-Check" }, { json = "/type", equals = "ping" }, { query = "token" }]
        relay_timeout = "1m"
        idempotency_key = ["header:X-GitHub-Delivery", "json:/a+json:/b/0"]
        on_key_reuse = "first_wins"
        answer = { status = 299, content_type = "text/xml; charset=utf-8", body = "<é/>" }
        redrive_on_replay = true
        forward_credentials = true
        forward_query = false
        "#,
    )
    .unwrap();
    let source = Source {
        producer: Some("stripe"),
        destination: Destination::new("http://u:p@[::1]:9000/x?token=t".parse().unwrap()),
        headers: StaticHeaders::new(vec![
            (HeaderName::from_static("x-b"), HeaderValue::from_static("")),
            (HeaderName::from_static("x-tenant"), HeaderValue::from_static("acme")),
        ])
        .unwrap(),
        max_body: 1000,
        policy: Policy {
            timeout: limits::TIMEOUT,
            concurrency: limits::CONCURRENCY,
            rate: NonZeroU32::new(limits::RATE),
            breaker: BreakerPolicy {
                failures: 0,
                refusals: limits::BREAKER_FAILURES,
                open_for: limits::TIMEOUT,
            },
            max_attempts: limits::MAX_ATTEMPTS,
            backoff: Backoff {
                initial_delay: Duration::ZERO,
                factor: 1.0,
                max_delay: limits::DELAY,
            },
            retry_on: [400, 404].into(),
            dead_letter_on: [999].into(),
        },
        idempotency_key: KeyPlaces::new(
            ["header:X-GitHub-Delivery", "json:/a+json:/b/0"]
                .map(|entry| Entry::parse(entry).unwrap())
                .into(),
        )
        .unwrap(),
        on_key_reuse: OnKeyReuse::FirstWins,
        acknowledgement: Acknowledgement {
            status: StatusCode::from_u16(299).unwrap(),
            content: Content::Fixed {
                content_type: Some(HeaderValue::from_static("text/xml; charset=utf-8")),
                body: Bytes::from_static("<é/>".as_bytes()),
            },
        },
        redrive_on_replay: true,
        forward_credentials: true,
        relay: RelayRules::new(vec![
            Rule::Method(surehook_core::relay::Method::Get),
            Rule::Part { part: Part::Header("X-Check".to_owned()), equals: None },
            Rule::Part {
                part: Part::Json(Pointer::parse("/type").unwrap()),
                equals: Some("ping".to_owned()),
            },
            Rule::Part { part: Part::Query("token".to_owned()), equals: None },
        ])
        .unwrap(),
        relay_timeout: limits::RELAY_TIMEOUT,
        forward_query: false,
        origins: Origins::default(),
    };
    let expected = Config {
        listen: "[::]:80".parse().unwrap(),
        operator_listen: Some("127.0.0.1:9090".parse().unwrap()),
        operator_hosts: ["ops.example", "::1", "fd00::1"].map(str::to_owned).into(),
        database: DatabaseUrl::new("postgres://u:p@db/surehook"),
        role: Role::Worker,
        log: LogFormat::Json,
        drain_timeout: Duration::ZERO,
        shutdown_grace: Duration::from_mins(5),
        migrate_on_start: false,
        intake: IntakeConfig {
            max_body: 100,
            max_queued: 1,
            max_queued_bytes: 1000,
            max_connections: 2,
            header_timeout: Duration::from_millis(1),
            idle_timeout: Duration::from_millis(2),
            body_timeout: limits::REQUEST_TIMEOUT,
        },
        worker: WorkerConfig { max_held_bytes: 3 << 10 },
        retention: Retention {
            delivered: Duration::from_secs(1),
            dead_lettered: limits::RETENTION,
        },
        delivered_payload: Duration::from_secs(2),
        sources: BTreeMap::from([(SourceName::parse("github").unwrap(), source)]),
        origins: Origins::default(),
    };
    assert_eq!(config, expected);
}

#[test]
fn a_source_inherits_unset_values_from_the_defaults() {
    let text = format!(
        "{SOURCE}timeout = \"1s\"\nretry_on = []\n[defaults]\ntimeout = \"2s\"\nconcurrency = 3\nretry_on = [404]\ndead_letter_on = [409]\n"
    );
    let config = parsed(&text).unwrap();
    let policy = &github(&config).policy;
    assert_eq!((policy.timeout, policy.concurrency), (Duration::from_secs(1), 3));
    assert_eq!((policy.retry_on.len(), policy.dead_letter_on.contains(&409)), (0, true));
}

#[test]
fn an_answer_of_a_source_replaces_that_of_the_defaults_completely() {
    let defaults = "[defaults]\nanswer = { status = 200, body = \"ok\" }\n";
    let answer = |line: &str| {
        let config = parsed(&format!("{SOURCE}{line}\n{defaults}")).unwrap();
        let Acknowledgement { status, content } = &github(&config).acknowledgement;
        let content = match content {
            Content::Standing => None,
            Content::Fixed { content_type, body } => {
                let content_type =
                    content_type.as_ref().map(|kind| kind.to_str().unwrap().to_owned());
                Some((content_type, String::from_utf8(body.to_vec()).unwrap()))
            }
        };
        (status.as_u16(), content)
    };
    let plain = Some("text/plain; charset=utf-8".to_owned());
    assert_eq!(answer(""), (200, Some((plain.clone(), "ok".to_owned()))));
    assert_eq!(answer("answer = {}"), (202, None));
    assert_eq!(answer("answer = { status = 201 }"), (201, None));
    assert_eq!(answer("answer = { body = \"\" }"), (202, Some((None, String::new()))));
    assert_eq!(answer("answer.body = \"a\""), (202, Some((plain, "a".to_owned()))));
    for status in [204, 205] {
        let line = format!("answer = {{ status = {status} }}");
        assert_eq!(answer(&line), (status, Some((None, String::new()))));
    }
    let longest = "x".repeat(limits::ANSWER_BODY);
    let (_, content) = answer(&format!("answer = {{ body = \"{longest}\" }}"));
    assert_eq!(content.unwrap().1, longest);
}

#[test]
fn a_source_without_max_body_has_that_of_the_intake() {
    let config = parsed(
        "[sources.small]\ndestination = \"http://x\"\n\
         [sources.large]\ndestination = \"http://x\"\nmax_body = \"25MiB\"\n\
         [intake]\nmax_body = \"2MiB\"\n",
    )
    .unwrap();
    let limits = ["small", "large"].map(|name| config.sources[name].max_body);
    assert_eq!((limits, config.intake.max_body), ([2 << 20, 25 << 20], 2 << 20));
    assert_eq!(config.largest_body(), 25 << 20);
    let shown = config.to_string();
    let (large, small) = shown.split_once("source small").unwrap();
    assert!(large.contains("\n  bodies      up to 25.0 MiB\n"), "{shown}");
    assert!(!small.contains("bodies"), "{shown}");
}

#[test]
fn relayed_requests_of_a_source_replace_those_of_the_defaults() {
    let defaults = "[defaults]\nrelay = [\"GET\"]\n";
    for (line, shown) in [
        ("", Some("GET (timeout 3s)")),
        ("relay = []", None),
        (
            "relay = [\"OPTIONS\", { query = \"t\", equals = \"1\" }]",
            Some("OPTIONS, query:t=1 (timeout 3s)"),
        ),
    ] {
        let config = parsed(&format!("{SOURCE}{line}\n{defaults}")).unwrap().to_string();
        let found = config.lines().find_map(|line| line.strip_prefix("  relayed     "));
        assert_eq!(found, shown, "{config}");
    }
}

#[test]
fn an_override_precedes_the_file_and_the_file_precedes_the_default() {
    let text = format!("listen = \"127.0.0.1:1\"\nrole = \"worker\"\n{SOURCE}");
    let overrides = Overrides {
        listen: Some("127.0.0.1:2".to_owned()),
        migrate_on_start: Some("false".to_owned()),
        ..Overrides::default()
    };
    let config = parsed_over(&text, &overrides).unwrap();
    assert_eq!(
        (config.listen.port(), config.role, config.migrate_on_start),
        (2, Role::Worker, false)
    );
}

#[test]
fn an_invalid_override_is_reported_with_flag_and_variable_but_no_password() {
    let wrong = |text: &str| Some(text.to_owned());
    let overrides = Overrides {
        listen: wrong("localhost"),
        operator_listen: wrong("9090"),
        operator_hosts: wrong("ops.example, https://ops.example"),
        database: wrong("mysql://root:hunter2@db/x"),
        role: wrong("boss"),
        log: wrong(""),
        drain_timeout: wrong("2h"),
        shutdown_grace: wrong("301s"),
        migrate_on_start: wrong("yes"),
    };
    let told = parsed_over(SOURCE, &overrides).unwrap_err().to_string();
    assert_eq!(
        told,
        "--listen (or SUREHOOK_LISTEN in the environment): `localhost` is not an IP address with a port: write for example `127.0.0.1:8080`, or `0.0.0.0:8080` for every interface
--operator-listen (or SUREHOOK_OPERATOR_LISTEN in the environment): `9090` is not an IP address with a port: write for example `127.0.0.1:8080`, or `0.0.0.0:8080` for every interface
--operator-hosts (or SUREHOOK_OPERATOR_HOSTS in the environment): `https://ops.example` is not a host name: write for example `surehook.example.com`, without a scheme or a port
--database (or SUREHOOK_DATABASE in the environment): not a database URL: write `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`
--role (or SUREHOOK_ROLE in the environment): `boss` is not a valid value: write `all` or `intake` or `worker`
--log (or SUREHOOK_LOG in the environment): `` is not a valid value: write `human` or `json`
--drain-timeout (or SUREHOOK_DRAIN_TIMEOUT in the environment): `2h` is out of range: write a duration from 0s to 1h
--shutdown-grace (or SUREHOOK_SHUTDOWN_GRACE in the environment): `301s` is out of range: write a duration from 0s to 5m
--migrate-on-start (or SUREHOOK_MIGRATE_ON_START in the environment): `yes` is not a valid value: write `true` or `false`"
    );
}

#[test]
fn all_errors_are_reported_together_in_file_order() {
    let text =
        "rolle = \"all\"\n[sources.b]\ndestination = \"ftp://x\"\n[sources.a]\nconcurrency = 0\n";
    let lines: Vec<(Place, String)> = parsed(text)
        .unwrap_err()
        .problems
        .into_iter()
        .map(|problem| (problem.place, problem.key))
        .collect();
    let at = |line, column| Place::At { line, column };
    assert_eq!(
        lines,
        [
            (at(1, 1), "rolle".to_owned()),
            (at(3, 15), "sources.b.destination".to_owned()),
            (at(4, 10), "sources.a".to_owned()),
            (at(5, 15), "sources.a.concurrency".to_owned()),
        ]
    );
}

#[test]
fn static_headers_are_displayed_without_their_values() {
    let line = "headers = { Authorization = \"Bearer hunter2\", X-A = \"${TOKEN}\" }";
    let config = parsed(&format!("{SOURCE}{line}")).unwrap();
    let shown = config.to_string();
    assert!(shown.contains("\n  headers     authorization, x-a\n"), "{shown}");
    assert!(shown.contains("\n  replaced    headers.X-A: ${TOKEN}\n"), "{shown}");
    for shown in [shown, format!("{config:?}"), format!("{:?}", config.sources)] {
        assert!(!shown.contains("hunter"), "{shown}");
    }
}

#[test]
fn no_secret_is_displayed() {
    let text = "database = \"postgres://user:hunter2@db/x?password=hunter3&sslkey=hunter4\"\n\
                [sources.s]\ndestination = \"https://hunter5:hunter6@x/p?token=hunter7#hunter8\"\n";
    let config = parsed(text).unwrap();
    for shown in [format!("{config:?}"), format!("{config:#?}"), config.to_string()] {
        assert!(!shown.contains("hunter"), "{shown}");
        assert!(
            shown.contains("postgres://user@db/x") && shown.contains("https://x/p?…"),
            "{shown}"
        );
    }
}

#[test]
fn missing_files_and_unreadable_files_are_different_errors() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.toml");
    let overrides = Overrides { database: Some("sqlite:x.db".to_owned()), ..Overrides::default() };
    let told = Config::load(&missing, &overrides).unwrap_err();
    assert!(
        matches!(&told, ConfigError::NotFound { .. })
            && told.to_string().contains("destination = "),
        "{told}"
    );
    assert!(matches!(
        Config::load_without_sources(Some(&missing), &overrides),
        Err(ConfigError::NotFound { .. })
    ));
    assert!(matches!(Config::load(folder.path(), &overrides), Err(ConfigError::Unreadable { .. })));
    let endless = Config::load(Path::new("/dev/zero"), &overrides).unwrap_err().to_string();
    assert!(endless.contains("longer than 4 MiB"), "{endless}");
}

/// Texts similar to a valid file: random lines of known settings, values and section headers.
fn near_a_file() -> impl Strategy<Value = String> {
    let settings = documents::keys(documents::EXAMPLE).into_iter();
    let mut settings: Vec<String> =
        settings.map(|key| key.rsplit('.').next().unwrap().to_owned()).collect();
    let others = [
        "answer.status",
        "lease",
        "sources",
        "intake",
        "defaults.timeout",
        "sources.x.destination",
    ];
    settings.extend(others.map(str::to_owned));
    let key = prop_oneof![proptest::sample::select(settings), "[a-z\"'. ü]{0,12}"];
    let value = prop_oneof![
        proptest::sample::select(vec![
            "\"1s\"",
            "\"1MiB\"",
            "1",
            "-1",
            "1.5",
            "nan",
            "true",
            "[404]",
            "[1, [2]]",
            "{}",
            "{a = 1}",
            "{status = 204, body = \"\"}",
            "[\"GET\", {query = \"t\"}]",
            "[{json = \"/a\", equals = \"b\"}, {}]",
            "{x-a = \"${TOKEN}\", host = \"b\"}",
            "\"http://x\"",
            "\"sqlite:x\"",
            "\"${TOKEN}\"",
            "\"http://${HOST}/${file:/run/secrets/token}\"",
            "\"${TIME}\"",
            "\"${UNSET} ${\"",
            "\"\"\"",
            "2020-01-01"
        ])
        .prop_map(str::to_owned),
        any::<String>().prop_map(|text| format!("{text:?}")),
        any::<i128>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| number.to_string()),
    ];
    let header = proptest::sample::select(vec![
        "[intake]",
        "[defaults]",
        "[retention]",
        "[sources]",
        "[sources.x]",
        "[sources.\"x y\"]",
        "[[sources.y]]",
        "[",
        "",
    ]);
    let line = prop_oneof![3 => (key, value).prop_map(|(key, value)| format!("{key} = {value}")), 1 => header.prop_map(str::to_owned), 1 => any::<String>()];
    proptest::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

/// Every error has a message with advice, and its place is inside the file.
fn told_well(content: &[u8]) -> Result<(), TestCaseError> {
    let lines = content.iter().filter(|byte| **byte == b'\n').count() + 1;
    let Err(error) = Config::parse("x", content, &Overrides::default(), &Known) else {
        return Ok(());
    };
    let problems = problems(error).problems;
    prop_assert!(!problems.is_empty());
    for SettingError { place, message, .. } in problems {
        prop_assert!(message.contains(": ") || message.contains("; "), "{message}");
        match place {
            Place::At { line, column } => prop_assert!(
                (1..=lines).contains(&line) && (1..=content.len() + 1).contains(&column)
            ),
            Place::File => prop_assert!(message.contains("no source is configured")),
            Place::Override { .. } => prop_assert!(false, "no override is set"),
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_accepted_or_reported_with_a_place(content in proptest::collection::vec(any::<u8>(), 0..200)) {
        told_well(&content)?;
    }

    #[test]
    fn almost_valid_files_are_accepted_or_reported_with_a_place(text in near_a_file()) {
        told_well(text.as_bytes())?;
    }

    #[test]
    fn every_duration_and_size_in_range_is_accepted(millis in 1..=3_600_000u64, bytes in 1..=(64usize << 20)) {
        let config = parsed(&format!("[intake]\nmax_body = {bytes}\n{SOURCE}timeout = \"{millis}ms\"")).unwrap();
        prop_assert_eq!(config.intake.max_body, bytes);
        prop_assert_eq!(github(&config).policy.timeout, Duration::from_millis(millis));
    }
}

#[test]
fn the_summary_says_where_the_key_of_each_source_is() {
    for (written, shown) in [
        ("\"header:X-Id\"", "header:X-Id, on reuse: reject\n"),
        (
            "[\"header:X-Id\", \"json:/a+json:/b\"]",
            "header:X-Id, else json:/a+json:/b, on reuse: reject\n",
        ),
        ("\"header:X-Id+body\"", "header:X-Id+body, on reuse: reject\n"),
        ("\"body\"", "body\n              requests with the same body are one event\n"),
        (
            "\"request\"",
            "request\n              no deduplication: every request is a new event, and so is a retry of the producer\n",
        ),
        (
            "[\"json:/id\", \"body\"]",
            "json:/id, else body, on reuse: reject\n              requests without the other places and with the same body are one event\n",
        ),
        (
            "[\"json:/id\", \"request\"]",
            "json:/id, else request, on reuse: reject\n              no deduplication without the other places: such a request is a new event, and so is its retry\n",
        ),
    ] {
        let config = parsed(&format!("{SOURCE}idempotency_key = {written}")).unwrap().to_string();
        assert!(config.contains(&format!("\n  key         {shown}  delivery")), "{config}");
    }
}

#[test]
fn the_summary_shows_an_answer_that_differs_from_the_default() {
    for (written, shown) in [
        ("{ status = 202 }", None),
        ("{ status = 200 }", Some("200, JSON")),
        ("{ status = 204 }", Some("204, no body")),
        ("{ content_type = \"text/xml\", body = \"é\" }", Some("202, text/xml, a body of 2 bytes")),
    ] {
        let config = parsed(&format!("{SOURCE}answer = {written}")).unwrap().to_string();
        let line = config.lines().find_map(|line| line.strip_prefix("  answer      "));
        assert_eq!(line, shown, "{config}");
    }
}
