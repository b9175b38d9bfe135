//! Replaces `${NAME}` and `${file:PATH}` in the text values of a configuration file with the value of
//! an environment variable or the content of a file.
//!
//! A value is replaced after the file was parsed, so a secret cannot change the structure of the
//! file. What was replaced is remembered as it is written, because a replaced value is never shown:
//! neither in an error nor by `check`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The longest replacement, in bytes. It catches a wrong path.
const MAX_BYTES: usize = 64 << 10;

const REFERENCE: &str = "${";
const LITERAL: &str = "$${";
const FILE: &str = "file:";

/// Where the values of variables and files come from. An error is a predicate, such as "is not set".
pub trait Secrets {
    /// The value of an environment variable.
    ///
    /// # Errors
    ///
    /// Why there is none.
    fn variable(&self, name: &str) -> Result<String, String>;

    /// The content of a file.
    ///
    /// # Errors
    ///
    /// Why there is none.
    fn file(&self, path: &str) -> Result<String, String>;
}

/// The environment of this process, and the files of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Machine;

/// No variables and no files.
#[derive(Clone, Copy, Debug)]
pub struct NoSecrets;

impl Secrets for Machine {
    fn variable(&self, name: &str) -> Result<String, String> {
        match std::env::var(name) {
            Ok(value) => Ok(value),
            Err(std::env::VarError::NotPresent) => Err("is not set".to_owned()),
            Err(std::env::VarError::NotUnicode(_)) => Err("is not valid UTF-8".to_owned()),
        }
    }

    fn file(&self, path: &str) -> Result<String, String> {
        let cannot_be_read = |error: std::io::Error| format!("cannot be read ({error})");
        let path = Path::new(path);
        // A pipe or a device could let the start wait without an end.
        if !path.metadata().map_err(cannot_be_read)?.is_file() {
            return Err("is not a regular file".to_owned());
        }
        let (mut content, most) = (Vec::new(), MAX_BYTES as u64 + 1);
        let file = File::open(path).map_err(cannot_be_read)?;
        file.take(most).read_to_end(&mut content).map_err(cannot_be_read)?;
        String::from_utf8(content).map_err(|_| "is not valid UTF-8".to_owned())
    }
}

impl Secrets for NoSecrets {
    fn variable(&self, _: &str) -> Result<String, String> {
        Err("is not set".to_owned())
    }

    fn file(&self, _: &str) -> Result<String, String> {
        Err("cannot be read".to_owned())
    }
}

/// A text value as it is written in the file. It never contains what replaces its references.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Written(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A reference, such as `${TOKEN}`.
    Reference(String),
}

/// A reference that cannot be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unresolved {
    /// The reference as it is written, or its beginning.
    pub(super) written: String,
    pub(super) message: String,
}

impl Written {
    /// Reads a value. `None` if it contains no `${`.
    pub(super) fn parse(text: &str) -> Option<Result<Self, Unresolved>> {
        text.contains(REFERENCE).then(|| pieces(text).map(Self))
    }

    /// The value with all references replaced.
    pub(super) fn resolve(&self, secrets: &dyn Secrets) -> Result<String, Vec<Unresolved>> {
        let (mut resolved, mut unresolved) = (String::new(), Vec::new());
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => resolved.push_str(text),
                Piece::Reference(written) => match value(written, secrets) {
                    Ok(value) => resolved.push_str(&value),
                    Err(message) => {
                        unresolved.push(Unresolved { written: written.clone(), message });
                    }
                },
            }
        }
        if unresolved.is_empty() { Ok(resolved) } else { Err(unresolved) }
    }

    /// The references, in order, such as `${TOKEN}`.
    pub(super) fn references(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Reference(written) => Some(written.as_str()),
        })
    }

    /// A value that can be shown, with its references as they are written. `show` hides what else
    /// must not be shown, such as a password. If it cannot read the value, only the references are
    /// shown.
    pub(super) fn shown(&self, show: impl FnOnce(&str) -> Option<String>) -> String {
        // Letters and digits are allowed in each part of a URL.
        let stand_in = |n: usize| format!("zzreference{n}zz");
        let (mut text, mut references) = (String::new(), Vec::new());
        for piece in &self.0 {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Reference(written) => {
                    text.push_str(&stand_in(references.len()));
                    references.push(written.as_str());
                }
            }
        }
        match show(&text) {
            Some(shown) => references
                .iter()
                .enumerate()
                .fold(shown, |shown, (n, written)| shown.replace(&stand_in(n), written)),
            None => references.join(" "),
        }
    }
}

/// The settings whose values were replaced, by their names, and the references of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, BTreeSet<String>>);

impl Origins {
    pub(super) fn add(&mut self, setting: &str, written: &Written) {
        let references = written.references().map(str::to_owned);
        let of_setting = self.0.entry(setting.to_owned()).or_default();
        of_setting.extend(references);
    }

    /// Forgets a setting that was overridden.
    pub(super) fn remove(&mut self, setting: &str) {
        self.0.remove(setting);
    }

    /// The references of a setting and of the settings below it, if a value was replaced there.
    #[must_use]
    pub fn of(&self, setting: &str) -> Option<String> {
        let is_below = |name: &str| {
            name.strip_prefix(setting).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let references: BTreeSet<&str> = (self.0.iter())
            .filter(|(name, _)| is_below(name))
            .flat_map(|(_, references)| references.iter().map(String::as_str))
            .collect();
        (!references.is_empty()).then(|| references.into_iter().collect::<Vec<_>>().join(" "))
    }

    /// The references of a setting, or else its value.
    pub(super) fn or(&self, setting: &str, value: &dyn fmt::Display) -> String {
        self.of(setting).unwrap_or_else(|| value.to_string())
    }

    /// Each setting with its references, for example `database: ${DATABASE}`.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(setting, references)| {
            let references: Vec<&str> = references.iter().map(String::as_str).collect();
            format!("{setting}: {}", references.join(" "))
        })
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, Unresolved> {
    let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
    while let Some(next) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix(LITERAL) {
            plain.push_str(REFERENCE);
            rest = after;
        } else if rest.starts_with(REFERENCE) {
            let (written, after) = reference(rest)?;
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Reference(written.to_owned()));
            rest = after;
        } else {
            plain.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

/// Splits a text that begins with `${` after its first reference.
fn reference(text: &str) -> Result<(&str, &str), Unresolved> {
    let end = text.find('}').map(|end| end + 1);
    let is_name = |name: &str| {
        !name.starts_with(|c: char| c.is_ascii_digit())
            && !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let names = |written: &str| match name(written) {
        Name::File(path) => !path.is_empty() && !path.contains(char::is_control),
        Name::Variable(name) => is_name(name),
    };
    match end.map(|end| text.split_at(end)).filter(|(written, _)| names(written)) {
        Some(split) => Ok(split),
        None => Err(Unresolved {
            written: REFERENCE.to_owned(),
            message: "`${` names neither a variable nor a file: write `${NAME}` or `${file:/run/secrets/token}`, or `$${` for the characters `${`"
                .to_owned(),
        }),
    }
}

enum Name<'a> {
    Variable(&'a str),
    File(&'a str),
}

fn name(written: &str) -> Name<'_> {
    let name = written.strip_prefix(REFERENCE).and_then(|rest| rest.strip_suffix('}'));
    let name = name.unwrap_or_default();
    name.strip_prefix(FILE).map_or(Name::Variable(name), Name::File)
}

/// What a reference stands for.
fn value(written: &str, secrets: &dyn Secrets) -> Result<String, String> {
    let (what, found) = match name(written) {
        Name::Variable(name) => {
            (format!("the environment variable `{name}`"), secrets.variable(name))
        }
        Name::File(path) => (format!("the file `{}`", path.escape_debug()), secrets.file(path)),
    };
    let checked = found.and_then(|mut value| {
        if matches!(name(written), Name::File(_)) {
            let line = value.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
            if let Some(length) = line.map(str::len) {
                value.truncate(length);
            }
        }
        match value.len() {
            0 => Err("is empty".to_owned()),
            length if length > MAX_BYTES => Err("is longer than 64 KiB".to_owned()),
            _ => Ok(value),
        }
    });
    checked.map_err(|why| format!("{what} {why}: set it, or write `$${{` for the characters `${{`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The variable `A` is `1`, and each file contains its path and a line break.
    struct Known;

    impl Secrets for Known {
        fn variable(&self, name: &str) -> Result<String, String> {
            match name {
                "A" => Ok("1".to_owned()),
                "_b2" => Ok("two\n".to_owned()),
                "EMPTY" => Ok(String::new()),
                _ => Err("is not set".to_owned()),
            }
        }

        fn file(&self, path: &str) -> Result<String, String> {
            match path {
                "/windows" => Ok("w\r\n".to_owned()),
                "/lines" => Ok("a\nb\n\n".to_owned()),
                "/empty" => Ok("\n".to_owned()),
                "/long" => Ok("x".repeat(MAX_BYTES + 1)),
                "/missing" => Err("cannot be read".to_owned()),
                path => Ok(format!("{path}\n")),
            }
        }
    }

    fn resolved(text: &str) -> Result<String, Vec<Unresolved>> {
        match Written::parse(text) {
            None => Ok(text.to_owned()),
            Some(written) => {
                written.map_err(|error| vec![error]).and_then(|written| written.resolve(&Known))
            }
        }
    }

    #[test]
    fn variables_and_files_are_replaced_and_all_other_text_is_kept() {
        for (text, expected) in [
            ("", ""),
            ("$A {A} $", "$A {A} $"),
            ("${A}", "1"),
            ("Bearer ${A}${_b2}!", "Bearer 1two\n!"),
            ("${file:/run/a b}", "/run/a b"),
            ("${file:/windows}", "w"),
            ("${file:/lines}", "a\nb\n"),
            ("$${A}", "${A}"),
            ("$$${A}", "$${A}"),
            ("ü${A}ü", "ü1ü"),
        ] {
            assert_eq!(resolved(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_reference_that_names_nothing_is_refused() {
        for (text, written, why) in [
            ("${B}", "${B}", "the environment variable `B` is not set"),
            ("${EMPTY}", "${EMPTY}", "the environment variable `EMPTY` is empty"),
            ("${file:/missing}", "${file:/missing}", "the file `/missing` cannot be read"),
            ("${file:/empty}", "${file:/empty}", "the file `/empty` is empty"),
            ("${file:/long}", "${file:/long}", "the file `/long` is longer than 64 KiB"),
        ] {
            let refused = resolved(text).unwrap_err();
            let message = format!("{why}: set it, or write `$${{` for the characters `${{`");
            assert_eq!(refused, [Unresolved { written: written.to_owned(), message }]);
        }
        for text in ["${", "${}", "a${A", "${A-B}", "${1}", "${ A }", "${file:}", "${${A}}"] {
            let refused = resolved(text).unwrap_err();
            assert_eq!(refused.len(), 1, "{text}");
            assert!(refused[0].message.contains("names neither a variable nor a file"), "{text}");
        }
        assert_eq!(resolved("${B} ${A} ${C}").unwrap_err().len(), 2);
    }

    #[test]
    fn a_value_is_shown_as_it_is_written() {
        let written = Written::parse("${A}-${file:/b}-$${C}").unwrap().unwrap();
        assert_eq!(written.shown(|text| Some(text.to_owned())), "${A}-${file:/b}-${C}");
        assert_eq!(written.shown(|_| None), "${A} ${file:/b}");
        assert_eq!(written.shown(|_| Some("…".to_owned())), "…");
    }

    #[test]
    fn the_files_of_the_machine_are_read_within_limits() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("token"), "t0ken\n").unwrap();
        std::fs::write(path("binary"), b"\xff").unwrap();
        std::fs::write(path("long"), vec![b'x'; MAX_BYTES * 2]).unwrap();
        assert_eq!(Machine.file(&path("token")), Ok("t0ken\n".to_owned()));
        assert_eq!(Machine.file(&path("long")).unwrap().len(), MAX_BYTES + 1);
        assert_eq!(Machine.file(&path("binary")), Err("is not valid UTF-8".to_owned()));
        assert!(Machine.file(&path("missing")).unwrap_err().starts_with("cannot be read ("));
        for not_a_file in [path(""), "/dev/null".to_owned()] {
            assert_eq!(Machine.file(&not_a_file), Err("is not a regular file".to_owned()));
        }
        assert_eq!(Machine.variable("NO_SUCH_VARIABLE"), Err("is not set".to_owned()));
    }

    proptest! {
        #[test]
        fn any_text_with_escaped_references_is_itself(text in "[ -~ü${}]{0,40}") {
            // The only text that cannot be escaped is a `$` directly before a reference.
            prop_assume!(!text.contains(LITERAL));
            prop_assert_eq!(resolved(&text.replace(REFERENCE, LITERAL)), Ok(text));
        }
    }
}
