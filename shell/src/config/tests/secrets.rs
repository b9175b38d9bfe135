//! References to variables and files: they are replaced in every text, and never shown.

use super::*;

/// Asserts that `text` has exactly one error, with exactly this message.
#[track_caller]
fn check(text: &str, expected: &str) {
    let told = parsed(text).expect_err("an error").to_string();
    assert_eq!(told, format!("surehook.toml:{expected}"));
}

#[test]
fn references_are_replaced_in_every_text() {
    let config = parsed(
        "database = \"${file:/run/secrets/database}\"\n\
         operator_hosts = [\"${HOST}\"]\n\
         retention.delivered = \"${TIME}\"\n\
         [sources.github]\n\
         destination = \"https://u:${TOKEN}@x/${file:/run/secrets/token}/$${TOKEN}\"\n\
         timeout = \"${TIME}\"\n\
         relay = [{ query = \"verify\", equals = \"${TOKEN}\" }]\n\
         answer = { body = \"ok ${TOKEN}\" }\n",
    )
    .unwrap();
    assert_eq!(config.database.secret(), "postgres://u:hunter2@db/x");
    assert!(config.operator_hosts.contains("hunter2.example"));
    assert_eq!(config.retention.delivered, Duration::from_secs(17));
    let Source { destination, policy, relay, acknowledgement, .. } = github(&config);
    assert_eq!(destination.secret().as_str(), "https://u:hunter2@x/hunter2/$%7BTOKEN%7D");
    assert_eq!(policy.timeout, Duration::from_secs(17));
    let equals = Some("hunter2".to_owned());
    assert_eq!(relay.rules(), [Rule::Part { part: Part::Query("verify".to_owned()), equals }]);
    let Content::Fixed { body, .. } = &acknowledgement.content else { panic!("a fixed body") };
    assert_eq!(&body[..], b"ok hunter2");
}

#[test]
fn a_secret_cannot_change_the_structure_of_the_file() {
    let text = format!("{SOURCE}answer = {{ body = \"${{QUOTE}}\" }}\n");
    let config = parsed(&text).unwrap();
    assert_eq!(config.sources.len(), 1);
    let Content::Fixed { body, .. } = &github(&config).acknowledgement.content else {
        panic!("a fixed body")
    };
    assert_eq!(&body[..], b"hunter2\"\n[sources.x]");
}

#[test]
fn a_replaced_value_is_named_and_never_shown() {
    let config = parsed(
        "listen = \"127.0.0.1:80\"\n\
         database = \"postgres://surehook:${file:/run/secrets/token}@${HOST}/x?password=${TOKEN}\"\n\
         operator_hosts = [\"${HOST}\"]\n\
         [retention]\n\
         dead_lettered = \"${TIME}\"\n\
         [defaults]\n\
         relay = [{ query = \"verify\", equals = \"${TOKEN}\" }]\n\
         [sources.github]\n\
         destination = \"https://u:hunter3@${HOST}/${TOKEN}/x?hunter4\"\n\
         timeout = \"${TIME}\"\n\
         idempotency_key = \"header:X-${TOKEN}\"\n\
         answer = { body = \"${TOKEN}\", content_type = \"text/${TOKEN}\" }\n\
         [sources.whole]\n\
         destination = \"http://${HOST}:1/\"\n",
    )
    .unwrap();
    let shown = config.to_string();
    for shown in [&shown, &format!("{config:?}"), &format!("{:?}", config.sources)] {
        assert!(!shown.contains("hunter") && !shown.contains("17s"), "{shown}");
    }
    for line in [
        "\ndatabase    postgres://surehook@${HOST}/x, migrated at start\n",
        "\n            host names for operators: ${HOST}\n",
        "\nretention   delivered 7days, dead-lettered ${TIME}\n",
        "\nreplaced    database: ${HOST} ${TOKEN} ${file:/run/secrets/token}\n",
        "\nreplaced    operator_hosts: ${HOST}\n",
        "\n  delivers to https://${HOST}/${TOKEN}/x?…\n",
        "\n  key         ${TOKEN}, on reuse: reject\n",
        "\n  answer      202, ${TOKEN}, a body of 7 bytes\n",
        "\n  delivery    16 in flight, timeout ${TIME}, lease ${TIME}\n",
        "\n  relayed     ${TOKEN} (timeout 3s)\n",
        "\n  replaced    relay.equals: ${TOKEN}\n",
        "\n  replaced    timeout: ${TIME}\n",
        "\n  delivers to http://${HOST}:1/\n",
    ] {
        assert!(shown.contains(line), "{line:?} is missing in:\n{shown}");
    }
}

#[test]
fn a_url_that_is_replaced_as_a_whole_shows_only_its_reference() {
    let config = parsed(
        "database = \"${file:/run/secrets/database}\"\nsources.s.destination = \"http://x/\"",
    )
    .unwrap();
    assert_eq!(config.database.to_string(), "${file:/run/secrets/database}");
    let overrides =
        Overrides { database: Some("sqlite:other.db".to_owned()), ..Overrides::default() };
    let text =
        "database = \"${file:/run/secrets/database}\"\nsources.s.destination = \"http://x/\"";
    let overridden = parsed_over(text, &overrides).unwrap();
    assert_eq!(
        (overridden.database.to_string(), overridden.origins),
        ("sqlite:other.db".to_owned(), Origins::default())
    );
}

#[test]
fn a_reference_that_names_nothing_is_an_error_with_its_place() {
    const SET: &str = "set it, or write `$${` for the characters `${`";
    check(
        &format!("{SOURCE}timeout = \"a ${{UNSET}}\""),
        &format!(
            "3:14: `sources.github.timeout`: the environment variable `UNSET` is not set: {SET}"
        ),
    );
    check(
        &format!("database = '''\nsqlite:${{file:/a b}}'''\n{SOURCE}"),
        &format!("2:8: `database`: the file `/a b` cannot be read (no such file): {SET}"),
    );
    check(
        &format!("{SOURCE}answer = {{ body = \"\\u0024{{UNSET}}\" }}"),
        &format!(
            "3:19: `sources.github.answer.body`: the environment variable `UNSET` is not set: {SET}"
        ),
    );
    check(
        &format!("{SOURCE}idempotency_key = [\"json:/a\", \"json:/${{b\"]"),
        "3:38: `sources.github.idempotency_key`: `${` names neither a variable nor a file: write `${NAME}` or `${file:/run/secrets/token}`, or `$${` for the characters `${`",
    );
}

#[test]
fn an_error_in_a_replaced_value_does_not_show_the_value() {
    for (line, place) in [
        ("timeout = \"${TOKEN}\"", "3:11: `sources.github.timeout`"),
        ("max_body = \"${TOKEN}\"", "3:12: `sources.github.max_body`"),
        ("producer = \"${TOKEN}\"", "3:12: `sources.github.producer`"),
        ("idempotency_key = [\"body+x\", \"${TOKEN}\"]", "3:30: `sources.github.idempotency_key`"),
        ("relay = [\"${TOKEN}\"]", "3:10: `sources.github.relay`"),
        ("answer = { content_type = \"${TOKEN}\" }", "3:27: `sources.github.answer.content_type`"),
    ] {
        let told = parsed(&format!("{SOURCE}{line}")).expect_err("an error").to_string();
        let message = "not a valid value with the replacement of `${TOKEN}`, which is not shown: check the variable or the file, and the text around it";
        assert!(told.contains(&format!("{place}: {message}")), "{told}");
        assert!(!told.contains("hunter"), "{told}");
    }
    check(
        &format!("{SOURCE}concurrency = \"${{TOKEN}}\""),
        "3:15: `sources.github.concurrency`: this is text: write a whole number, without quotes",
    );
}
