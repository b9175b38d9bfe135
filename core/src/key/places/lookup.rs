//! Looks up the idempotency key of a request in the places of its source.

use super::{Entry, KeyPlaces, Place};
use crate::admission::Fingerprint;
use crate::id::EventId;
use crate::key::pointer::{Found, Kind, NotJson};
use crate::key::{IdempotencyKey, KeyError};
use alloc::borrow::Cow;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// What is known of a request before its body was read.
pub struct Head<'r, H> {
    /// Returns the values of a header. The name can be in any case.
    pub header: H,
    /// The query, as sent.
    pub query: &'r str,
}

/// What is known of a request after its body was read.
#[derive(Clone, Copy, Debug)]
pub struct Received<'r> {
    /// The body, as sent.
    pub body: &'r [u8],
    /// The fingerprint of this body.
    pub fingerprint: Fingerprint,
    /// The id of the event, if it is new.
    pub id: EventId,
}

impl Received<'_> {
    /// For places that need no body.
    const NOTHING: Self =
        Self { body: &[], fingerprint: Fingerprint::from_bytes([0; 32]), id: EventId::MIN };
}

impl KeyPlaces {
    /// Looks up the key before the body is read, so that a request without a key is refused early.
    /// `None`: the body decides, so call [`Self::find`] when it was read.
    ///
    /// # Errors
    ///
    /// [`LookupError`] if the body cannot change it.
    pub fn find_in_head<'r, I: Iterator<Item = &'r [u8]>>(
        &self,
        head: &Head<'r, impl Fn(&str) -> I>,
    ) -> Result<Option<IdempotencyKey>, LookupError> {
        let needs_body = |entry: &Entry| entry.0.iter().any(Place::needs_body);
        let first = self.0.iter().position(needs_body).unwrap_or(self.0.len());
        match find(&self.0[..first], head, Received::NOTHING) {
            Err(LookupError::Missing(_)) if first < self.0.len() => Ok(None),
            found => found.map(Some),
        }
    }

    /// Looks up the key.
    ///
    /// # Errors
    ///
    /// [`LookupError`] if no entry is present, or if the first one that is present is not a key.
    pub fn find<'r, I: Iterator<Item = &'r [u8]>>(
        &self,
        head: &Head<'r, impl Fn(&str) -> I>,
        received: Received<'r>,
    ) -> Result<IdempotencyKey, LookupError> {
        find(&self.0, head, received)
    }
}

fn find<'r, I: Iterator<Item = &'r [u8]>>(
    entries: &[Entry],
    head: &Head<'r, impl Fn(&str) -> I>,
    received: Received<'r>,
) -> Result<IdempotencyKey, LookupError> {
    let mut missing = Vec::new();
    for entry in entries {
        match entry.find(head, received) {
            Ok(Ok(key)) => return Ok(key),
            Ok(Err((place, fault))) => return Err(LookupError::Invalid { place, fault }),
            Err(absent) => missing.push(absent),
        }
    }
    Err(LookupError::Missing(missing))
}

/// A key, or the place whose value is not one.
type Value = Result<IdempotencyKey, (String, Fault)>;

impl Entry {
    fn find<'r, I: Iterator<Item = &'r [u8]>>(
        &self,
        head: &Head<'r, impl Fn(&str) -> I>,
        received: Received<'r>,
    ) -> Result<Value, Absent> {
        if let [place] = self.0.as_slice() {
            // The key is stored as the producer sent it.
            return self.part(place, head, received);
        }
        // All parts must be present before one of them can be invalid.
        let parts = self.0.iter().map(|place| self.part(place, head, received));
        let parts: Vec<Value> = parts.collect::<Result<_, _>>()?;
        let parts: Result<Vec<_>, _> = parts.into_iter().collect();
        Ok(parts.and_then(|parts| {
            joined(&parts).map_err(|error| (self.to_string(), Fault::Key(error)))
        }))
    }

    fn part<'r, I: Iterator<Item = &'r [u8]>>(
        &self,
        place: &Place,
        head: &Head<'r, impl Fn(&str) -> I>,
        received: Received<'r>,
    ) -> Result<Value, Absent> {
        match place.read(head, received) {
            Ok(value) => Ok(value.map_err(|fault| (place.to_string(), fault))),
            Err(absence) => Err(Absent {
                entry: self.to_string(),
                part: (self.0.len() > 1).then(|| place.to_string()),
                absence,
            }),
        }
    }
}

/// Joins the values of several places to one key. Different values give different keys, because a
/// plus sign within a value is escaped.
fn joined(parts: &[IdempotencyKey]) -> Result<IdempotencyKey, KeyError> {
    let escaped = |part: &IdempotencyKey| part.as_str().replace('%', "%25").replace('+', "%2B");
    let parts: Vec<String> = parts.iter().map(escaped).collect();
    IdempotencyKey::exact(parts.join("+").as_bytes())
}

impl Place {
    /// The value of this place, if it is present.
    fn read<'r, I: Iterator<Item = &'r [u8]>>(
        &self,
        head: &Head<'r, impl Fn(&str) -> I>,
        received: Received<'r>,
    ) -> Result<Result<IdempotencyKey, Fault>, Absence> {
        let text = |value: Cow<'r, str>| plain(&value);
        match self {
            Self::Header(name) => {
                let parsed = |value: &[u8]| IdempotencyKey::parse(value).map_err(Fault::Key);
                only((head.header)(name), parsed).ok_or(Absence::Header)
            }
            Self::Query(name) => {
                only(values(head.query.as_bytes(), name), text).ok_or(Absence::Parameter)
            }
            Self::Form(_) if !is_form(received.body) => Err(Absence::NotForm),
            Self::Form(field) => only(values(received.body, field), text).ok_or(Absence::Field),
            Self::Json(pointer) => match pointer.find(received.body) {
                Err(NotJson) => Err(Absence::NotJson),
                Ok(None) => Err(Absence::Member),
                Ok(Some(Found::Text(text))) => Ok(plain(&text)),
                Ok(Some(Found::Integer(digits))) => Ok(plain(digits)),
                Ok(Some(Found::Other(kind))) => Ok(Err(Fault::Kind(kind))),
            },
            Self::Body => Ok(plain(&received.fingerprint.to_string())),
            Self::Request => Ok(plain(&received.id.to_string())),
        }
    }
}

/// A key without quotes around it.
fn plain(value: &str) -> Result<IdempotencyKey, Fault> {
    IdempotencyKey::exact(value.as_bytes()).map_err(Fault::Key)
}

/// Reads the only value. `None`: there is no value.
fn only<T>(
    mut values: impl Iterator<Item = T>,
    read: impl FnOnce(T) -> Result<IdempotencyKey, Fault>,
) -> Option<Result<IdempotencyKey, Fault>> {
    let value = values.next()?;
    Some(if values.next().is_some() { Err(Fault::Repeated) } else { read(value) })
}

/// The values of one name in a query or a form.
fn values<'r>(text: &'r [u8], name: &str) -> impl Iterator<Item = Cow<'r, str>> {
    form_urlencoded::parse(text).filter(move |(other, _)| other == name).map(|(_, value)| value)
}

/// Whether a body can be a form: it contains only characters of a URL (RFC 3986 §2). JSON and XML
/// contain others, so that no text within them is taken for a field of a form.
fn is_form(body: &[u8]) -> bool {
    let is_of_url =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(byte);
    body.iter().all(is_of_url)
}

/// Why a request has no idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No entry of the list is present.
    #[error("the idempotency key is missing: {}", listed(.0))]
    Missing(Vec<Absent>),
    /// The first entry that is present is not a key.
    #[error("in `{place}`, {fault}")]
    Invalid {
        /// The place with the invalid value.
        place: String,
        /// What is wrong with the value.
        fault: Fault,
    },
}

fn listed(missing: &[Absent]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// An entry of the list that is not present in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// The entry.
    pub entry: String,
    /// The first of its places that is not present, if it joins several.
    pub part: Option<String>,
    /// Why it is not present.
    pub absence: Absence,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, part, absence } = self;
        match part {
            None => write!(f, "{absence} (`{entry}`)"),
            Some(part) => write!(f, "{absence} (`{part}` of `{entry}`)"),
        }
    }
}

/// Why a place is not present in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// The request does not have the header.
    #[error("no such header")]
    Header,
    /// The query does not have the parameter.
    #[error("no such query parameter")]
    Parameter,
    /// The body has a character that a form does not have.
    #[error("the body is not a form")]
    NotForm,
    /// The form does not have the field.
    #[error("no such form field")]
    Field,
    /// The body is not JSON.
    #[error("the body is not JSON")]
    NotJson,
    /// The JSON text does not have the member.
    #[error("no such JSON member")]
    Member,
}

/// Why a value is not an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The text is not a key.
    #[error(transparent)]
    Key(KeyError),
    /// The header, field or parameter is repeated.
    #[error("the idempotency key occurs more than once; send exactly one")]
    Repeated,
    /// The JSON value is neither a string nor an integer.
    #[error("the idempotency key is {0}; send a string or an integer")]
    Kind(Kind),
}
