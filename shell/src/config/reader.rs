//! Reads a TOML document setting by setting, and collects all errors with their places. A key that
//! no caller asked for is unknown. Which settings exist, and their bounds, is defined in the parent
//! module.

use super::error::{ConfigError, Place, SettingError};
use super::secrets::{Secrets, Unresolved, Written};
use super::{limits, values};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Reads the content of a configuration file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let mut content = Vec::new();
    match File::open(path).and_then(|file| file.take(limits::FILE + 1).read_to_end(&mut content)) {
        Ok(_) if content.len() as u64 > limits::FILE => Err(ConfigError::Unreadable {
            path: path.to_owned(),
            source: io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it is longer than 4 MiB, the limit of a configuration file",
            ),
        }),
        Ok(_) => Ok(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(ConfigError::NotFound { path: path.to_owned() })
        }
        Err(source) => Err(ConfigError::Unreadable { path: path.to_owned(), source }),
    }
}

/// How each message about the type of a value begins. Such a message never contains the value.
const KIND: &str = "this is ";

/// A parsed TOML file, whatever its keys are.
pub(super) struct Document<'i> {
    text: &'i str,
    root: DeTable<'i>,
    replaced: Replaced,
}

/// The values of a document that contained references.
#[derive(Clone, Default)]
struct Replaced {
    /// By the positions of the values: as they are written. `None` if a reference names nothing.
    at: BTreeMap<usize, Option<Written>>,
    /// The full names of the settings with replaced values.
    settings: Vec<(String, Written)>,
    /// The references that name nothing: position, full name of the setting, message.
    unresolved: Vec<(usize, String, String)>,
}

impl<'i> Document<'i> {
    pub(super) fn parse(content: &'i [u8]) -> Result<Self, SettingError> {
        let content = content.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(content);
        let text = std::str::from_utf8(content).map_err(|error| {
            let valid = &content[..error.valid_up_to()];
            let place = place(&String::from_utf8_lossy(valid), valid.len());
            SettingError {
                place,
                key: String::new(),
                message: "the file is not valid UTF-8 from here: save it as UTF-8".to_owned(),
            }
        })?;
        let root = DeTable::parse(text).map_err(|error| {
            let at = error.span().unwrap_or(text.len()..text.len());
            let message = match (error.message(), text.get(at.clone())) {
                ("duplicate key", Some(key)) => format!("`{key}` is set twice: keep one of them"),
                (message, _) => format!("invalid TOML: {message}"),
            };
            SettingError { place: place(text, at.start), key: String::new(), message }
        })?;
        Ok(Self { text, root: root.into_inner(), replaced: Replaced::default() })
    }

    /// Replaces the references in all text values.
    pub(super) fn replace(&mut self, secrets: &dyn Secrets) {
        let Self { text, root, replaced } = self;
        in_table(text, root, "", secrets, replaced);
    }

    /// The full names of the settings whose values were replaced, and the values as written.
    pub(super) fn replaced(&self) -> &[(String, Written)] {
        &self.replaced.settings
    }

    /// Runs `read` on the document and returns all errors, in file order.
    pub(super) fn read(&self, read: impl FnOnce(&mut Section<'_>)) -> Vec<SettingError> {
        let found = self.replaced.unresolved.iter().cloned();
        let mut report = Report {
            found: found.map(|(at, key, message)| (Some(at), key, message)).collect(),
            replaced: self.replaced.at.clone(),
            ..Report::default()
        };
        let mut root = Section {
            name: String::new(),
            at: None,
            table: &self.root,
            asked: BTreeSet::new(),
            report: &mut report,
        };
        read(&mut root);
        root.finish();
        report.problems(self.text)
    }
}

/// One table of the document, and the keys that were read from it.
pub(super) struct Section<'d> {
    name: String,
    /// Where it starts; `None` for the whole file and for a missing section.
    at: Option<usize>,
    table: &'d DeTable<'d>,
    asked: BTreeSet<&'static str>,
    report: &'d mut Report,
}

impl Section<'_> {
    /// Sets `value` from text, if the key is present and valid.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        value: &mut T,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) {
        self.value(key, value, |found| {
            read(found.as_str().ok_or_else(|| kind("text in quotes", found))?)
        });
    }

    pub(super) fn boolean(&mut self, key: &'static str, value: &mut bool) {
        self.value(key, value, |found| {
            found.as_bool().ok_or_else(|| kind("`true` or `false`, without quotes", found))
        });
    }

    pub(super) fn integer<T>(&mut self, key: &'static str, value: &mut T, least: T, most: T)
    where
        T: TryFrom<i128> + PartialOrd + fmt::Display,
    {
        self.value(key, value, |found| {
            let number =
                whole(found).ok_or_else(|| kind("a whole number, without quotes", found))?;
            T::try_from(number)
                .ok()
                .filter(|number| *number >= least && *number <= most)
                .ok_or_else(|| {
                    format!("{number} is out of range: write a whole number from {least} to {most}")
                })
        });
    }

    /// Sets an integer or decimal number.
    pub(super) fn number(&mut self, key: &'static str, value: &mut f64, least: f64, most: f64) {
        self.value(key, value, |found| {
            let text = found
                .as_float()
                .map(|float| float.as_str())
                .or(found.as_integer().map(|integer| integer.as_str()));
            let number: f64 = text
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| kind("a number, without quotes", found))?;
            // NaN is outside every range.
            if (least..=most).contains(&number) {
                Ok(number)
            } else {
                Err(format!(
                    "{number} is out of range: write a number from {least:.1} to {most:.1}"
                ))
            }
        });
    }

    /// Sets a number of bytes, from text with a unit or from a whole number.
    pub(super) fn size(&mut self, key: &'static str, value: &mut usize, most: usize) {
        self.value(key, value, |found| match (found.as_str(), whole(found)) {
            (Some(text), _) => values::size(text, most),
            (None, Some(number)) => values::size(&number.to_string(), most),
            (None, None) => Err(kind("a size in quotes, such as \"1MiB\"", found)),
        });
    }

    /// Sets a list of texts.
    pub(super) fn texts<T: Ord>(
        &mut self,
        key: &'static str,
        values: &mut BTreeSet<T>,
        read: impl Fn(&str) -> Result<T, String>,
    ) {
        let Some(found) = self.ask(key) else { return };
        let Some(array) = found.get_ref().as_array() else {
            return self.report(
                found.span(),
                key,
                kind("a list of texts in quotes, such as [\"one\", \"two\"]", found.get_ref()),
            );
        };
        values.clear();
        for text in array {
            match text
                .get_ref()
                .as_str()
                .ok_or_else(|| kind("text in quotes", text.get_ref()))
                .and_then(&read)
            {
                Ok(value) => drop(values.insert(value)),
                Err(message) => self.report(text.span(), key, message),
            }
        }
    }

    /// Sets a value from one text or from a list of texts. `read` parses each text, and `combine`
    /// makes the value of them.
    pub(super) fn text_or_list<T, E>(
        &mut self,
        key: &'static str,
        value: &mut T,
        read: impl Fn(&str) -> Result<E, String>,
        combine: impl FnOnce(Vec<E>) -> Result<T, String>,
    ) {
        let Some(found) = self.ask(key) else { return };
        let texts = match found.get_ref().as_array() {
            Some(array) => array.iter().collect(),
            None => vec![found],
        };
        let (mut entries, mut all_valid) = (Vec::new(), true);
        for text in texts {
            match text
                .get_ref()
                .as_str()
                .ok_or_else(|| kind("text in quotes, or a list of texts", text.get_ref()))
                .and_then(&read)
            {
                Ok(entry) => entries.push(entry),
                Err(message) => {
                    all_valid = false;
                    self.report(text.span(), key, message);
                }
            }
        }
        if all_valid {
            match combine(entries) {
                Ok(combined) => *value = combined,
                Err(message) => self.report(found.span(), key, message),
            }
        }
    }

    /// Sets a value from a list whose items are texts or tables. `combine` makes the value of them.
    pub(super) fn texts_or_sections<T, E>(
        &mut self,
        key: &'static str,
        value: &mut T,
        read_text: impl Fn(&str) -> Result<E, String>,
        read_section: impl Fn(&mut Section<'_>) -> Option<E>,
        combine: impl FnOnce(Vec<E>) -> Result<T, String>,
    ) {
        let Some(found) = self.ask(key) else { return };
        let Some(array) = found.get_ref().as_array() else {
            return self.report(found.span(), key, kind("a list in brackets", found.get_ref()));
        };
        let mut entries = Vec::new();
        for item in array {
            let table = item.get_ref().as_table();
            let entry = match (item.get_ref().as_str(), table) {
                (Some(text), _) => {
                    read_text(text).map_err(|message| self.report(item.span(), key, message)).ok()
                }
                (None, Some(table)) => {
                    let mut section = Section {
                        name: self.full(key),
                        at: Some(item.span().start),
                        table,
                        asked: BTreeSet::new(),
                        report: &mut *self.report,
                    };
                    let entry = read_section(&mut section);
                    section.finish();
                    entry
                }
                (None, None) => {
                    let wanted = "text in quotes or a table in braces";
                    self.report(item.span(), key, kind(wanted, item.get_ref()));
                    None
                }
            };
            entries.extend(entry);
        }
        if entries.len() == array.len() {
            match combine(entries) {
                Ok(combined) => *value = combined,
                Err(message) => self.report(found.span(), key, message),
            }
        }
    }

    /// Sets a value from a table whose keys are names that the user chose, and whose values are texts.
    pub(super) fn texts_by_name<T, N, E>(
        &mut self,
        key: &'static str,
        value: &mut T,
        read_name: impl Fn(&str) -> Result<N, String>,
        read_text: impl Fn(&str) -> Result<E, String>,
        combine: impl FnOnce(Vec<(N, E)>) -> Result<T, String>,
    ) {
        let Some(found) = self.ask(key) else { return };
        let Some(table) = found.get_ref().as_table() else {
            let wanted = "a table in braces, such as { Name = \"value\" }";
            return self.report(found.span(), key, kind(wanted, found.get_ref()));
        };
        let (mut entries, mut all_valid) = (Vec::new(), true);
        for (name, text) in table {
            let below = format!("{key}.{}", name.get_ref());
            let read = read_name(name.get_ref()).map_err(|message| (name.span(), message));
            let entry = read.and_then(|name| {
                let written = text.get_ref();
                let read = written.as_str().ok_or_else(|| kind("text in quotes", written));
                let read = read.and_then(&read_text);
                read.map(|text| (name, text)).map_err(|message| (text.span(), message))
            });
            match entry {
                Ok(entry) => entries.push(entry),
                Err((at, message)) => {
                    all_valid = false;
                    self.report(at, &below, message);
                }
            }
        }
        if all_valid {
            match combine(entries) {
                Ok(combined) => *value = combined,
                Err(message) => self.report(found.span(), key, message),
            }
        }
    }

    pub(super) fn status_codes(&mut self, key: &'static str, value: &mut BTreeSet<u16>) {
        let Some(found) = self.ask(key) else { return };
        let Some(array) = found.get_ref().as_array() else {
            return self.report(
                found.span(),
                key,
                kind("a list of status codes, such as [404, 409]", found.get_ref()),
            );
        };
        value.clear();
        for code in array {
            match whole(code.get_ref())
                .and_then(|code| u16::try_from(code).ok())
                .filter(|code| (100..=999).contains(code))
            {
                Some(code) => drop(value.insert(code)),
                None => self.report(
                    code.span(),
                    key,
                    "not a status code: write whole numbers from 100 to 999".to_owned(),
                ),
            }
        }
    }

    /// Reads a subsection. A missing one is read as empty.
    pub(super) fn section(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_>)) {
        self.ask(key);
        self.named(key, read);
    }

    /// Reads a subsection, if it is present.
    pub(super) fn section_if_set(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_>),
    ) {
        if self.ask(key).is_some() {
            self.named(key, read);
        }
    }

    /// Reads a subsection whose name the user chose.
    pub(super) fn named(&mut self, key: &str, read: impl FnOnce(&mut Section<'_>)) {
        let empty = DeTable::new();
        let found = self.table.get_key_value(key);
        let table = match found.map(|(name, value)| (name, value.get_ref().as_table(), value)) {
            Some((_, Some(table), _)) => table,
            Some((_, None, value)) => {
                return self.report(
                    value.span(),
                    key,
                    kind(&format!("a section, `[{}]`", self.full(key)), value.get_ref()),
                );
            }
            None => &empty,
        };
        let at = found.map(|(name, _)| name.span().start);
        let mut section = Section {
            name: self.full(key),
            at,
            table,
            asked: BTreeSet::new(),
            report: &mut *self.report,
        };
        read(&mut section);
        section.finish();
    }

    /// The keys of a section whose keys are names that the user chose, so none of them is unknown.
    pub(super) fn names(&self) -> Vec<String> {
        self.table.keys().map(|name| name.get_ref().to_string()).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Refuses a key that users may expect, and explains why it is no setting.
    pub(super) fn refuse(&mut self, key: &'static str, message: &str) {
        if let Some((name, _)) = self.table.get_key_value(key) {
            let at = name.span();
            self.report.refused.insert(at.start);
            self.report(at, key, message.to_owned());
        }
    }

    /// Reports that this section's name is not valid, or that something in it is missing.
    pub(super) fn wrong(&mut self, message: &str) {
        self.report.add(self.at, self.name.clone(), message.to_owned());
    }

    /// Reports values that contradict each other or another section, at the first one that is set in
    /// this section. If none is set here, the error was inherited and has been reported. If one of
    /// them is not valid by itself, that error is enough.
    pub(super) fn conflict(&mut self, keys: &[&'static str], message: String) {
        let wrong = keys.iter().any(|key| self.report.blames(&self.full(key)));
        let set =
            keys.iter().find_map(|key| self.table.get(*key).map(|value| (*key, value.span())));
        if let (false, Some((key, at))) = (wrong, set) {
            self.report(at, key, message);
        }
    }

    fn value<T>(
        &mut self,
        key: &'static str,
        value: &mut T,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) {
        let Some(found) = self.ask(key) else { return };
        match read(found.get_ref()) {
            Ok(read) => *value = read,
            Err(message) => self.report(found.span(), key, message),
        }
    }
}

impl<'d> Section<'d> {
    fn ask(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.asked.insert(key);
        self.table.get(key)
    }

    fn full(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// Reports an error at a value or a key. The message about a replaced value may contain the value,
    /// so it is replaced.
    fn report(&mut self, at: Range<usize>, key: &str, message: String) {
        let key = self.full(key);
        let message = match self.report.replaced.get(&at.start) {
            _ if message.starts_with(KIND) => message,
            None => message,
            Some(Some(written)) => hidden(written),
            // It is reported already that the reference names nothing.
            Some(None) => return,
        };
        self.report.add(Some(at.start), key, message);
    }

    /// Reports the keys that were not read. A section from which nothing was read contains names
    /// that the user chose.
    fn finish(self) {
        if self.asked.is_empty() {
            return;
        }
        for (name, _) in self.table {
            if !self.asked.contains(name.get_ref().as_ref()) {
                self.report.unknown.push(Unknown {
                    at: name.span().start,
                    section: self.name.clone(),
                    key: name.get_ref().to_string(),
                });
            }
        }
        self.report.known.push(Known { section: self.name, keys: self.asked });
    }
}

#[derive(Default)]
struct Report {
    found: Vec<(Option<usize>, String, String)>,
    replaced: BTreeMap<usize, Option<Written>>,
    refused: BTreeSet<usize>,
    unknown: Vec<Unknown>,
    known: Vec<Known>,
}

struct Unknown {
    at: usize,
    section: String,
    key: String,
}

struct Known {
    section: String,
    keys: BTreeSet<&'static str>,
}

impl Report {
    fn add(&mut self, at: Option<usize>, key: String, message: String) {
        self.found.push((at, key, message));
    }

    fn blames(&self, full_key: &str) -> bool {
        self.found.iter().any(|(_, key, _)| key == full_key)
    }

    fn problems(mut self, text: &str) -> Vec<SettingError> {
        for unknown in std::mem::take(&mut self.unknown) {
            if !self.refused.contains(&unknown.at) {
                let message = self.advice(&unknown);
                let Unknown { at, section, key } = unknown;
                let key = if section.is_empty() { key } else { format!("{section}.{key}") };
                self.add(Some(at), key, message);
            }
        }
        self.found.sort_by_key(|(at, _, _)| *at);
        let problem = |(at, key, message): (Option<usize>, String, String)| {
            let place = at.map_or(Place::File, |at| place(text, at));
            SettingError { place, key, message }
        };
        self.found.into_iter().map(problem).collect()
    }

    fn advice(&self, Unknown { section, key, .. }: &Unknown) -> String {
        let here = self
            .known
            .iter()
            .filter(|known| known.section == *section)
            .flat_map(|known| &known.keys);
        let nearest = here.map(|known| (strsim::osa_distance(known, key), *known)).min();
        if let Some((distance, known)) = nearest
            && distance <= known.len() / 3
        {
            return format!("unknown setting; did you mean `{known}`?");
        }
        match self.known.iter().find(|known| known.keys.contains(key.as_str())) {
            Some(Known { section, .. }) if section.is_empty() => {
                format!(
                    "unknown setting here: `{key}` belongs at the top of the file, before the first `[section]`"
                )
            }
            Some(Known { section, .. }) => {
                format!("unknown setting here: `{key}` belongs in `[{section}]`")
            }
            None => {
                let known = self.known.iter().find(|known| known.section == *section);
                let keys: Vec<String> = known
                    .iter()
                    .flat_map(|known| &known.keys)
                    .map(|key| format!("`{key}`"))
                    .collect();
                format!("unknown setting; the settings here are {}", keys.join(", "))
            }
        }
    }
}

/// Replaces the references in a table and in all values below it. `name` is its full name.
fn in_table(
    text: &str,
    table: &mut DeTable<'_>,
    name: &str,
    secrets: &dyn Secrets,
    replaced: &mut Replaced,
) {
    for (key, value) in table.iter_mut() {
        let key = key.get_ref();
        let name = if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
        in_value(text, value, &name, secrets, replaced);
    }
}

fn in_value(
    text: &str,
    value: &mut Spanned<DeValue<'_>>,
    name: &str,
    secrets: &dyn Secrets,
    replaced: &mut Replaced,
) {
    let span = value.span();
    match value.get_mut() {
        DeValue::String(found) => in_text(text, found, span, name, secrets, replaced),
        DeValue::Array(items) => {
            items.iter_mut().for_each(|item| in_value(text, item, name, secrets, replaced));
        }
        DeValue::Table(table) => in_table(text, table, name, secrets, replaced),
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {}
    }
}

fn in_text(
    text: &str,
    found: &mut Cow<'_, str>,
    span: Range<usize>,
    name: &str,
    secrets: &dyn Secrets,
    replaced: &mut Replaced,
) {
    let resolved = match Written::parse(found) {
        None => return,
        Some(Err(unresolved)) => Err(vec![unresolved]),
        Some(Ok(written)) => written.resolve(secrets).map(|resolved| (written, resolved)),
    };
    match resolved {
        Ok((written, resolved)) => {
            *found = Cow::Owned(resolved);
            if written.references().next().is_some() {
                replaced.settings.push((name.to_owned(), written.clone()));
                replaced.at.insert(span.start, Some(written));
            }
        }
        Err(unresolved) => {
            replaced.at.insert(span.start, None);
            for Unresolved { written, message } in unresolved {
                // With escapes in the text, the reference may not be found: then the value counts.
                let raw = text.get(span.clone()).unwrap_or_default();
                let at = span.start + raw.find(&written).unwrap_or(0);
                replaced.unresolved.push((at, name.to_owned(), message));
            }
        }
    }
}

/// The message about a replaced value that is not valid.
fn hidden(written: &Written) -> String {
    let references: Vec<&str> = written.references().collect();
    format!(
        "not a valid value with the replacement of `{}`, which is not shown: check the variable or the file, and the text around it",
        references.join("` and `")
    )
}

fn whole(value: &DeValue<'_>) -> Option<i128> {
    let integer = value.as_integer()?;
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn kind(wanted: &str, found: &DeValue<'_>) -> String {
    let found = match found.type_str() {
        "string" => "text",
        "integer" => "a whole number",
        "float" => "a number",
        "boolean" => "true or false",
        "datetime" => "a date or time",
        "array" => "a list",
        "table" => "a section",
        other => other,
    };
    format!("{KIND}{found}: write {wanted}")
}

/// The line and column of a byte position, both counted from 1.
fn place(text: &str, at: usize) -> Place {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Place::At {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}
