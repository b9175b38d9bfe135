//! Producers by name: the data is valid, and a source takes its settings.

use super::super::producers::{self, Producer};
use super::*;

/// A source of this producer, with more settings.
fn source_of(producer: &str, more: &str) -> Result<Source, SettingErrors> {
    let config = parsed(&format!("{SOURCE}producer = \"{producer}\"\n{more}"))?;
    Ok(github(&config).clone())
}

fn possible() -> impl Iterator<Item = &'static Producer> {
    producers::all().iter().filter(|producer| producer.refused.is_none())
}

#[test]
fn the_data_has_no_errors() {
    let problems = producers::problems();
    assert!(problems.is_empty(), "{problems:?}");
    let names: Vec<&str> = producers::all().iter().map(|producer| producer.name.as_str()).collect();
    assert!(names.is_sorted() && names.len() > 45, "{names:?}");
    for producer in producers::all() {
        let Producer { name, title, documentation, refused, settings, by_hand, .. } = producer;
        assert!(SourceName::parse(name).is_ok() && !title.is_empty(), "{name}");
        assert!(documentation.starts_with("https://"), "{name}");
        assert_eq!(settings.is_empty(), refused.is_some(), "{name}");
        assert!(settings.is_empty() || settings.contains("idempotency_key = "), "{name}");
        // A redelivery that a person requests is the only way to send such an event again.
        assert_eq!(settings.contains("redrive_on_replay = true"), *by_hand, "{name}");
    }
}

#[test]
fn the_widely_used_producers_are_known() {
    for name in [
        "adyen",
        "alertmanager",
        "auth0",
        "aws-sns",
        "azure-event-grid",
        "bitbucket",
        "braintree",
        "calendly",
        "clerk",
        "cloudevents",
        "contentful",
        "docker-registry",
        "docusign",
        "dropbox",
        "github",
        "gitlab",
        "google-pubsub",
        "hubspot",
        "intercom",
        "jira",
        "linear",
        "mailgun",
        "meta",
        "microsoft-graph",
        "mux",
        "okta",
        "paddle",
        "pagerduty",
        "paypal",
        "plaid",
        "postmark",
        "salesforce",
        "segment",
        "sendgrid",
        "sentry",
        "shopify",
        "slack",
        "square",
        "standard-webhooks",
        "stripe",
        "svix",
        "telegram",
        "twilio",
        "twitch",
        "typeform",
        "woocommerce",
        "zendesk",
        "zoom",
    ] {
        assert!(possible().any(|producer| producer.name == name), "{name}");
    }
}

#[test]
fn a_printed_producer_sets_the_same_as_its_name() {
    for producer in possible() {
        let printed = parsed(&producer.to_string()).unwrap_or_else(|error| panic!("{error}"));
        let printed = &printed.sources[producer.name.as_str()];
        let named = source_of(&producer.name, "").unwrap();
        assert_eq!(
            Source {
                producer: named.producer,
                destination: named.destination.clone(),
                ..printed.clone()
            },
            named
        );
    }
}

#[test]
fn a_source_precedes_its_producer_and_a_producer_precedes_the_defaults() {
    let defaults =
        "[defaults]\nidempotency_key = \"body\"\nanswer = { status = 204 }\nconcurrency = 3\n";
    let linear = source_of("linear", defaults).unwrap();
    assert_eq!(linear.idempotency_key.to_string(), "header:Linear-Delivery");
    assert_eq!(linear.acknowledgement.status, StatusCode::OK);
    assert_eq!((linear.on_key_reuse, linear.policy.concurrency), (OnKeyReuse::FirstWins, 3));
    let own =
        "on_key_reuse = \"reject\"\nanswer = { status = 201 }\nidempotency_key = \"json:/id\"\n";
    let linear = source_of("linear", &format!("{own}{defaults}")).unwrap();
    assert_eq!(linear.idempotency_key.to_string(), "json:/id");
    assert_eq!(linear.acknowledgement.status, StatusCode::CREATED);
    assert_eq!(linear.on_key_reuse, OnKeyReuse::Reject);
    let (github, small) =
        (source_of("github", "").unwrap(), source_of("github", "max_body = \"2MiB\"").unwrap());
    assert_eq!((github.max_body, small.max_body), (25 << 20, 2 << 20));
    assert_eq!(source_of("stripe", "[intake]\nmax_body = 5").unwrap().max_body, 5);
}

#[test]
fn an_unknown_producer_is_reported_with_the_nearest_name() {
    let told = |name: &str| source_of(name, "").unwrap_err().to_string();
    for (wrong, near) in [
        ("strip", "stripe"),
        ("Stripe", "stripe"),
        ("git-hub", "github"),
        ("whatsapp", "meta"),
        ("prometheus", "alertmanager"),
        ("SNS", "aws-sns"),
    ] {
        assert_eq!(
            told(wrong),
            format!(
                "surehook.toml:3:12: `sources.github.producer`: `{wrong}` is not a known producer; did you mean `{near}`?"
            )
        );
    }
    for wrong in ["", "our own service"] {
        assert_eq!(
            told(wrong),
            format!(
                "surehook.toml:3:12: `sources.github.producer`: `{wrong}` is not a known producer: `surehook producers` lists them. For another one, set `idempotency_key`"
            )
        );
    }
}

#[test]
fn a_producer_that_needs_the_response_of_the_service_is_refused() {
    for producer in producers::all().iter().filter(|producer| producer.refused.is_some()) {
        let told = source_of(&producer.name, "").unwrap_err().to_string();
        let reason = producer.refused.as_ref().unwrap();
        assert!(told.ends_with(&format!("cannot be the producer of a source: {reason}")), "{told}");
        assert!(producer.to_string().contains("A source cannot have this producer: "));
    }
}

#[test]
fn a_producer_belongs_to_a_source_and_not_to_the_defaults() {
    let told =
        parsed(&format!("{SOURCE}[defaults]\nproducer = \"stripe\"")).unwrap_err().to_string();
    assert!(told.starts_with("surehook.toml:4:1: `defaults.producer`: unknown setting"), "{told}");
}

#[test]
fn the_largest_body_of_a_producer_is_at_most_max_queued_bytes() {
    let intake = "[intake]\nmax_queued_bytes = \"16MiB\"";
    assert_eq!(
        source_of("github", intake).unwrap_err().to_string(),
        "surehook.toml:3:12: `sources.github.producer`: `max_body` of this producer (26214400 bytes) is larger than `max_queued_bytes` of `[intake]` (16777216 bytes): raise `max_queued_bytes` or set a lower `max_body`"
    );
    assert!(source_of("github", &format!("max_body = \"1MiB\"\n{intake}")).is_ok());
    let wrong = "max_body = \"20MiB\"\nmax_queued_bytes = \"16MiB\"";
    let told = source_of("stripe", &format!("[intake]\n{wrong}")).unwrap_err();
    assert_eq!(told.problems.len(), 1, "{told}");
}

/// A file that a user could have: at most three lines for each source.
const FILE: &str = "\
[sources.stripe]
producer = \"stripe\"
destination = \"https://app.internal/stripe\"
[sources.slack]
producer = \"slack\"
destination = \"https://app.internal/slack\"
[sources.adyen]
producer = \"adyen\"
destination = \"https://app.internal/adyen\"
[sources.github]
producer = \"github\"
destination = \"https://app.internal/github\"
[sources.internal]
idempotency_key = \"request\"
destination = \"https://app.internal/jobs\"
";

#[test]
fn the_summary_names_each_producer_and_the_place_of_its_key() {
    let summary = parsed(FILE).unwrap().to_string();
    for (name, key) in [
        ("stripe", "json:/id, on reuse: first_wins"),
        ("slack", "json:/event_id, else body, on reuse: reject"),
        ("adyen", "body\n              requests with the same body are one event"),
        (
            "github",
            "header:X-GitHub-Delivery+header:X-GitHub-Hook-ID, else header:X-GitHub-Delivery, on reuse: reject",
        ),
    ] {
        let shown = format!(
            "source {name}\n  producer    {name}\n  delivers to https://app.internal/{name}\n  key         {key}\n"
        );
        assert!(summary.contains(&shown), "{shown}\n is not in \n{summary}");
    }
    assert!(
        summary.contains(
            "source internal\n  delivers to https://app.internal/jobs\n  key         request\n"
        ),
        "{summary}"
    );
}

#[test]
fn a_producer_is_printed_with_what_is_not_known() {
    assert_eq!(
        producers::find("paypal").unwrap().to_string(),
        "\
# PayPal
#
# documentation  https://developer.paypal.com/api/rest/webhooks
# waits          not known
# retries        25 times in 3 days (reported)
# gives up       marks the webhook as failed (reported)
#
# In a source, `producer = \"paypal\"` sets the same.

[sources.paypal]
destination = \"https://app.internal/paypal\"   # the URL of your service
idempotency_key = \"json:/id\"
"
    );
    let list = producers::list();
    assert!(list.contains("\nstripe                Stripe\n"), "{list}");
    assert!(list.split_once("not possible").unwrap().1.contains("\ntwilio-twiml "), "{list}");
}
