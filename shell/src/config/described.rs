//! A configuration and its errors as JSON, for `surehook check --json`. Without passwords and tokens, as
//! in [`super::shown`].

use super::values::on_key_reuse_name;
use super::{Config, ConfigError, IntakeConfig, Origins, Place, Source, WorkerConfig};
use crate::logs::millis;
use crate::ports::Retention;
use serde_json::{Map, Value, json};
use surehook_core::breaker::BreakerPolicy;
use surehook_core::source::Policy;

impl Config {
    /// What `serve` would run. Durations are in milliseconds and sizes in bytes; the unit is the end of
    /// each name.
    #[must_use]
    pub fn described(&self, file: &str) -> Value {
        let Self {
            listen,
            operator_listen,
            operator_hosts,
            database,
            role,
            log,
            drain_timeout,
            shutdown_grace,
            migrate_on_start,
            intake,
            worker: WorkerConfig { max_held_bytes },
            retention: Retention { delivered, dead_lettered },
            delivered_payload,
            sources,
            origins,
        } = self;
        let IntakeConfig {
            max_body,
            max_queued,
            max_queued_bytes,
            max_connections,
            idle_timeout,
            header_timeout,
            body_timeout,
        } = intake;
        let sources: Map<String, Value> =
            sources.iter().map(|(name, source)| (name.to_string(), source.described())).collect();
        let mut shown = json!({
            "valid": true,
            "file": file,
            "listen": listen.to_string(),
            "operator_listen": operator_listen.map(|address| address.to_string()),
            "operator_hosts": operator_hosts,
            "database": database.to_string(),
            "role": role.as_str(),
            "log": log.as_str(),
            "drain_timeout_ms": millis(*drain_timeout),
            "shutdown_grace_ms": millis(*shutdown_grace),
            "migrate_on_start": migrate_on_start,
            "intake": {
                "max_body_bytes": max_body,
                "max_queued": max_queued,
                "max_queued_bytes": max_queued_bytes,
                "max_connections": max_connections,
                "idle_timeout_ms": millis(*idle_timeout),
                "header_timeout_ms": millis(*header_timeout),
                "body_timeout_ms": millis(*body_timeout),
            },
            "worker": {"max_held_bytes": max_held_bytes},
            "retention": {
                "delivered_ms": millis(*delivered),
                "dead_lettered_ms": millis(*dead_lettered),
                "delivered_payload_ms": millis(*delivered_payload.min(delivered)),
            },
        });
        hide(&mut shown, "", origins);
        shown["sources"] = sources.into();
        shown
    }
}

impl Source {
    fn described(&self) -> Value {
        let Self {
            producer,
            destination,
            headers,
            max_body,
            policy,
            idempotency_key,
            on_key_reuse,
            acknowledgement,
            redrive_on_replay,
            forward_credentials,
            forward_query,
            relay,
            relay_timeout,
            origins,
        } = self;
        let Policy {
            timeout,
            concurrency,
            rate,
            breaker: BreakerPolicy { failures, refusals, open_for },
            max_attempts,
            backoff,
            retry_on,
            dead_letter_on,
        } = policy;
        let (shortest, longest) = backoff.span(*max_attempts);
        let mut shown = json!({
            "producer": producer,
            "destination": destination.to_string(),
            "headers": if headers.is_empty() { Value::Null } else { headers.to_string().into() },
            "max_body_bytes": max_body,
            "idempotency_key": idempotency_key.to_string(),
            "on_key_reuse": on_key_reuse_name(*on_key_reuse),
            "answer_status": acknowledgement.status.as_u16(),
            "redrive_on_replay": redrive_on_replay,
            "forward_credentials": forward_credentials,
            "forward_query": forward_query,
            "relay": if relay.rules().is_empty() { Value::Null } else { relay.to_string().into() },
            "relay_timeout_ms": millis(*relay_timeout),
            "concurrency": concurrency,
            "timeout_ms": millis(*timeout),
            "lease_ms": millis(policy.lease()),
            "rate": rate,
            "breaker_failures": failures,
            "breaker_refusals": refusals,
            "breaker_open_ms": millis(*open_for),
            "max_attempts": max_attempts,
            "initial_delay_ms": millis(backoff.initial_delay),
            "factor": backoff.factor,
            "max_delay_ms": millis(backoff.max_delay),
            "retries_last_ms": {"shortest": millis(shortest), "longest": millis(longest)},
            "retry_on": retry_on,
            "dead_letter_on": dead_letter_on,
        });
        hide(&mut shown, "", origins);
        shown
    }
}

impl ConfigError {
    /// All errors, each with its place.
    #[must_use]
    pub fn described(&self, file: &str) -> Value {
        let errors = match self {
            Self::NotFound { .. } | Self::Unreadable { .. } => {
                vec![json!({"setting": null, "message": self.to_string()})]
            }
            Self::Wrong(errors) => errors
                .problems
                .iter()
                .map(|error| {
                    let setting = Some(&error.key).filter(|key| !key.is_empty());
                    let mut shown = json!({"setting": setting, "message": error.message});
                    match error.place {
                        Place::File => {}
                        Place::At { line, column } => {
                            shown["line"] = line.into();
                            shown["column"] = column.into();
                        }
                        Place::Override { flag, variable } => {
                            shown["flag"] = flag.into();
                            shown["variable"] = variable.into();
                        }
                    }
                    shown
                })
                .collect(),
        };
        json!({"valid": false, "file": file, "errors": errors})
    }
}

/// Shows the references of each replaced setting instead of its value. `below` is the name of the
/// section that `shown` describes, with a dot at its end.
fn hide(shown: &mut Value, below: &str, origins: &Origins) {
    let Some(shown) = shown.as_object_mut() else { return };
    for (name, value) in shown {
        let setting = match name.as_str() {
            // They show their own references.
            "database" | "destination" | "headers" => continue,
            "answer_status" => "answer",
            "lease_ms" => "timeout",
            "retries_last_ms" => {
                let delays = ["initial_delay", "max_delay"].map(|delay| origins.of(delay));
                if let Some(references) = delays.into_iter().flatten().next() {
                    *value = references.into();
                }
                continue;
            }
            name => name.trim_end_matches("_ms").trim_end_matches("_bytes"),
        };
        let whole = format!("{below}{setting}");
        if value.is_object() {
            hide(value, &format!("{whole}."), origins);
        } else if let Some(references) =
            origins.of(&whole).or_else(|| origins.of(&format!("{below}{name}")))
        {
            *value = references.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{NoSecrets, Overrides, Secrets};

    struct Known([(&'static str, &'static str); 6]);

    impl Secrets for Known {
        fn variable(&self, name: &str) -> Result<String, String> {
            let found = self.0.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned()).ok_or_else(|| "is not set".to_owned())
        }

        fn file(&self, _: &str) -> Result<String, String> {
            Err("cannot be read".to_owned())
        }
    }

    fn parsed(content: &str) -> Result<Config, ConfigError> {
        Config::parse("surehook.toml", content.as_bytes(), &Overrides::default(), &NoSecrets)
    }

    #[test]
    fn a_valid_configuration_is_described_without_secrets() {
        let content = "database = \"postgres://me:secret@db/x\"\n[sources.orders]\n\
             destination = \"https://user:secret@app.example/hooks?token=secret\"\nmax_attempts = 3\n\
             initial_delay = \"4s\"\nfactor = 2\nmax_delay = \"8s\"\n";
        let shown = parsed(content).unwrap().described("surehook.toml");
        assert!(!shown.to_string().contains("secret"), "{shown:#}");
        assert_eq!((&shown["valid"], &shown["role"]), (&json!(true), &json!("all")));
        assert_eq!(shown["retention"]["delivered_payload_ms"], shown["retention"]["delivered_ms"]);
        let orders = &shown["sources"]["orders"];
        assert_eq!(orders["destination"], "https://app.example/hooks?…");
        assert_eq!(orders["retries_last_ms"], json!({"shortest": 6_000, "longest": 12_000}));
        assert_eq!((&orders["timeout_ms"], &orders["rate"]), (&json!(10_000), &json!(null)));
    }

    #[test]
    fn a_replaced_value_is_described_by_its_reference() {
        let content = "drain_timeout = \"${A}\"\n[intake]\nmax_queued_bytes = \"${B}\"\n[sources.orders]\n\
             destination = \"https://x:${C}@app.example/\"\nheaders = { x-token = \"${D}\" }\n\
             timeout = \"${E}\"\nidempotency_key = \"header:${F}\"\n";
        let secrets = [
            ("A", "17s"),
            ("B", "17MiB"),
            ("C", "secret"),
            ("D", "secret"),
            ("E", "17s"),
            ("F", "x-secret"),
        ];
        let config = Config::parse(
            "surehook.toml",
            content.as_bytes(),
            &Overrides::default(),
            &Known(secrets),
        )
        .unwrap();
        let shown = config.described("surehook.toml");
        for secret in ["secret", "17"] {
            assert!(!shown.to_string().contains(secret), "{shown:#}");
        }
        assert_eq!(shown["drain_timeout_ms"], "${A}");
        assert_eq!(shown["intake"]["max_queued_bytes"], "${B}");
        let orders = &shown["sources"]["orders"];
        assert_eq!((&orders["timeout_ms"], &orders["lease_ms"]), (&json!("${E}"), &json!("${E}")));
        assert_eq!(
            (&orders["idempotency_key"], &orders["headers"]),
            (&json!("${F}"), &json!("x-token"))
        );
    }

    #[test]
    fn every_error_of_a_configuration_has_its_setting_and_its_place() {
        let content = "rol = \"all\"\n[sources.orders]\ndestination = \"ftp://x\"\n";
        let shown = parsed(content).unwrap_err().described("surehook.toml");
        assert_eq!(shown["valid"], false);
        let errors = shown["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 2, "{shown:#}");
        assert_eq!((&errors[0]["setting"], &errors[0]["line"]), (&json!("rol"), &json!(1)));
        let destination = json!("sources.orders.destination");
        assert_eq!((&errors[1]["setting"], &errors[1]["line"]), (&destination, &json!(3)));
        assert!(
            errors
                .iter()
                .all(|error| error["message"].as_str().is_some_and(|told| !told.is_empty()))
        );
    }
}
