//! The sources whose redriven events wait, because the service does not deliver them now.

use crate::visible::escaped;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;

/// Collects them from the responses to redrives.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Why each source is not delivered.
    sources: BTreeMap<String, String>,
}

impl Waiting {
    /// Notes the sources that a response names. An older service names none.
    pub(super) fn note(&mut self, response: &Value) {
        for one in response["not_delivering"].as_array().into_iter().flatten() {
            if let (Some(source), Some(why)) = (one["source"].as_str(), one["why"].as_str()) {
                self.sources.insert(source.to_owned(), why.to_owned());
            }
        }
    }

    /// Prints a line for each source on standard error.
    pub(super) fn warn(&self) {
        for line in self.lines() {
            // The command has done what it should.
            let _ = writeln!(std::io::stderr(), "surehook: {line}");
        }
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        self.sources.iter().map(|(source, why)| {
            let name = escaped(source);
            match why.as_str() {
                "paused" => format!(
                    "warning: redriven events of {name} are not delivered: the source is paused; run `surehook resume {name}`"
                ),
                "not_configured" => format!(
                    "warning: redriven events of {name} are not delivered: the source is not configured; add it to the configuration"
                ),
                other => format!(
                    "warning: redriven events of {name} are not delivered: {}",
                    escaped(other)
                ),
            }
        })
    }

    pub(super) fn to_json(&self) -> Value {
        let one = |(source, why): (&String, &String)| json!({"source": source, "why": why});
        self.sources.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_whose_events_wait_is_named_once_with_its_reason() {
        let mut waiting = Waiting::default();
        for response in [
            json!({"redriven": 1}),
            json!({"not_delivering": null}),
            json!({"not_delivering": [{"source": "a", "why": "paused"}]}),
            json!({"not_delivering": [{"source": "a", "why": "paused"}, {"source": "b\u{1b}", "why": "not_configured"}]}),
        ] {
            waiting.note(&response);
        }
        let lines: Vec<String> = waiting.lines().collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("of a are not delivered: the source is paused"), "{lines:?}");
        assert!(lines[1].contains("the source is not configured"), "{lines:?}");
        assert!(!lines[1].contains('\u{1b}'), "{lines:?}");
        assert_eq!(waiting.to_json()[0], json!({"source": "a", "why": "paused"}));
    }
}
