//! The producers that a source can name: what is known of each, and the settings that it needs. The
//! data is `producers.toml`, which the reader of the configuration reads.
//!
//! No code knows a producer by its name: a producer is only settings and facts.

use super::reader::{Document, Section};
use super::values::quoted;
use super::{Settings, limits, settings};
use std::fmt;
use std::sync::LazyLock;

const DATA: &str = include_str!("producers.toml");

/// The width of a printed line, if no word is longer.
const WIDTH: usize = 100;

static DOCUMENT: LazyLock<Document<'static>> =
    LazyLock::new(|| Document::parse(DATA.as_bytes()).expect("a test reads the data"));

static PRODUCERS: LazyLock<Vec<Producer>> = LazyLock::new(|| {
    let mut producers = Vec::new();
    let _ = DOCUMENT.read(|root| {
        for name in root.names() {
            root.named(&name, |section| producers.push(facts(&name, section)));
        }
    });
    producers
});

/// One producer of webhooks. A fact that could not be established is `None`. "(reported)" in a fact
/// marks what is not in the producer's own documentation. Displayed as a source to paste into a
/// configuration, with the facts as comments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Producer {
    /// The value of the setting `producer`.
    pub name: String,
    /// The name that people use.
    pub title: String,
    /// The address of the producer's documentation.
    pub documentation: String,
    /// How long it waits for a response.
    pub waits: Option<String>,
    /// How long and how often it retries.
    pub retries: Option<String>,
    /// What happens after the last retry.
    pub gives_up: Option<String>,
    /// Whether a failed request is sent again only when a person or a program requests it.
    pub by_hand: bool,
    /// How it checks the URL before it sends events.
    pub handshake: Option<String>,
    /// The age at which its library refuses a signature.
    pub tolerance: Option<String>,
    /// What else a user must know.
    pub note: Option<String>,
    /// Why no source can have this producer.
    pub refused: Option<String>,
    /// The settings of a source, as TOML. Empty if no source can have this producer.
    pub settings: &'static str,
}

/// The name of a producer that is not known. The message suggests what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnknownProducer(String);

/// All producers, by name.
#[must_use]
pub fn all() -> &'static [Producer] {
    &PRODUCERS
}

/// The producer of this name.
///
/// # Errors
///
/// [`UnknownProducer`], with the nearest name if one is near.
pub fn find(name: &str) -> Result<&'static Producer, UnknownProducer> {
    all().iter().find(|producer| producer.name == name).ok_or_else(|| {
        let advice = match nearest(name) {
            Some(producer) => format!("; did you mean `{}`?", producer.name),
            None => ": `surehook producers` lists them. For another one, set `idempotency_key`"
                .to_owned(),
        };
        UnknownProducer(format!("{} is not a known producer{advice}", quoted(name)))
    })
}

/// The producer whose name is nearest, or else the one whose title contains the name.
fn nearest(name: &str) -> Option<&'static Producer> {
    let wanted = name.to_lowercase();
    let distance = |producer: &&Producer| strsim::osa_distance(&producer.name, &wanted);
    let near = all().iter().min_by_key(distance);
    let near = near.filter(|near| distance(near) <= near.name.len() / 3);
    let is_named = |producer: &&Producer| {
        !wanted.is_empty()
            && producer
                .title
                .to_lowercase()
                .split(|c: char| !c.is_alphanumeric())
                .any(|word| word == wanted)
    };
    near.or_else(|| all().iter().find(is_named))
}

/// All producers as a table for a terminal, first those that a source can name.
#[must_use]
pub fn list() -> String {
    let width = all().iter().map(|producer| producer.name.len()).max().unwrap_or(0);
    let row = |producer: &Producer| format!("{:width$}  {}\n", producer.name, producer.title);
    let rows = |refused: bool| {
        let rows = all().iter().filter(|producer| producer.refused.is_some() == refused);
        rows.map(row).collect::<String>()
    };
    format!(
        "{}\nnot possible, because a service that stores webhooks cannot answer them:\n{}\n\
         `surehook producers NAME` prints the settings of a producer, and what is known of it",
        rows(false),
        rows(true)
    )
}

impl Producer {
    /// Overrides settings with those of this producer.
    pub(super) fn apply(&self, settings: &mut Settings, max_body: &mut usize) {
        let _ = DOCUMENT.read(|root| {
            root.named(&self.name, |section| {
                section.named("source", |section| source(section, settings, max_body));
            });
        });
    }

    /// The facts with their labels, in the order in which they are printed.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let known = |fact: &Option<String>| fact.clone().unwrap_or_else(|| "not known".to_owned());
        let mut facts = vec![
            ("documentation", self.documentation.clone()),
            ("waits", known(&self.waits)),
            ("retries", known(&self.retries)),
            ("gives up", known(&self.gives_up)),
        ];
        let tolerance = self.tolerance.as_ref().map(|tolerance| format!("valid for {tolerance}"));
        for (label, fact) in [
            ("handshake", self.handshake.clone()),
            ("signature", tolerance),
            ("note", self.note.clone()),
        ] {
            facts.extend(fact.map(|fact| (label, fact)));
        }
        facts
    }
}

impl fmt::Display for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# {}\n#", self.title)?;
        for (mut label, fact) in self.facts() {
            for line in wrapped(&fact, WIDTH - 17) {
                writeln!(f, "# {label:<15}{line}")?;
                label = "";
            }
        }
        writeln!(f, "#")?;
        let name = &self.name;
        if let Some(reason) = &self.refused {
            let lines =
                wrapped(&format!("A source cannot have this producer: {reason}."), WIDTH - 2);
            return lines.iter().try_for_each(|line| writeln!(f, "# {line}"));
        }
        write!(
            f,
            "# In a source, `producer = \"{name}\"` sets the same.\n\n[sources.{name}]\n\
             destination = \"https://app.internal/{name}\"   # the URL of your service\n{}\n",
            self.settings
        )
    }
}

/// Reads everything but the settings of a source.
fn facts(name: &str, section: &mut Section<'_>) -> Producer {
    let mut producer =
        Producer { name: name.to_owned(), settings: written(name), ..Producer::default() };
    section.text("title", &mut producer.title, |text| Ok(text.to_owned()));
    section.text("documentation", &mut producer.documentation, |text| Ok(text.to_owned()));
    section.boolean("by_hand", &mut producer.by_hand);
    for (key, fact) in [
        ("waits", &mut producer.waits),
        ("retries", &mut producer.retries),
        ("gives_up", &mut producer.gives_up),
        ("handshake", &mut producer.handshake),
        ("tolerance", &mut producer.tolerance),
        ("note", &mut producer.note),
        ("refused", &mut producer.refused),
    ] {
        section.text(key, fact, |text| Ok(Some(text.to_owned())));
    }
    producer
}

/// Reads the settings of a source.
fn source(section: &mut Section<'_>, inherited: &mut Settings, max_body: &mut usize) {
    settings(section, inherited);
    section.size("max_body", max_body, limits::MAX_BODY);
}

/// The settings of a producer as they are written in the data.
fn written(name: &str) -> &'static str {
    let header = format!("\n[{name}.source]\n");
    let after = DATA.split_once(header.as_str()).map_or("", |(_, after)| after);
    after.split("\n[").next().unwrap_or_default().trim_end()
}

/// Breaks a text into lines between its words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// All errors of the data.
#[cfg(test)]
pub(super) fn problems() -> Vec<super::SettingError> {
    DOCUMENT.read(|root| {
        for name in root.names() {
            root.named(&name, |section| {
                drop(facts(&name, section));
                section.section_if_set("source", |section| {
                    source(section, &mut Settings::default(), &mut 0);
                });
            });
        }
    })
}
