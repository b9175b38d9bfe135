//! Where a source's idempotency keys are: the setting `idempotency_key`, and how a key is looked up
//! in a request.
//!
//! The setting is a list of places that are tried in order. An entry of the list can join several
//! places by `+`. The first entry whose places are all present gives the key; then no further entry
//! is tried, even if the key is not valid. The media type of the request is ignored: some producers
//! send a wrong one.

mod lookup;
#[cfg(test)]
mod tests;

pub use lookup::{Absence, Absent, Fault, Head, LookupError, Received};

use super::pointer::{Pointer, PointerError};
use crate::forwarding::{EVENT_ID_HEADER, Forwarding};
use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// The maximum number of places of one source, in all entries together. It bounds the time of a
/// lookup: each place reads the body once at most.
pub const MAX_PLACES: usize = 16;

/// The maximum length of one place in bytes, as written in the configuration.
pub const MAX_PLACE_BYTES: usize = 255;

/// The places of a source's idempotency key: a list that is tried in order. Not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPlaces(Vec<Entry>);

/// One entry of the list: a place, or several whose values together are the key. Not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry(Vec<Place>);

/// A part of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `header:NAME`: a header.
    Header(String),
    /// `json:POINTER`: a string or an integer in a JSON body.
    Json(Pointer),
    /// `form:FIELD`: a field of a body in the form `application/x-www-form-urlencoded`.
    Form(String),
    /// `query:NAME`: a parameter of the query.
    Query(String),
    /// `body`: the SHA-256 of the body. Requests with the same body are one event.
    Body,
    /// `request`: the id of the new event. Every request is a new event.
    Request,
}

impl KeyPlaces {
    /// Creates the list.
    ///
    /// # Errors
    ///
    /// [`PlacesError`] if it is empty or too long, or if an entry would never be used.
    pub fn new(entries: Vec<Entry>) -> Result<Self, PlacesError> {
        if entries.is_empty() {
            return Err(PlacesError::Empty);
        }
        if entries.iter().map(|entry| entry.0.len()).sum::<usize>() > MAX_PLACES {
            return Err(PlacesError::TooMany);
        }
        let before_last = &entries[..entries.len() - 1];
        if let Some(always) = before_last.iter().find(|entry| entry.is_always_present()) {
            return Err(PlacesError::Unreachable { entry: always.to_string() });
        }
        Ok(Self(entries))
    }

    /// The entries in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }
}

impl Default for KeyPlaces {
    /// The header `Idempotency-Key`.
    fn default() -> Self {
        Self(vec![Entry(vec![Place::Header("Idempotency-Key".to_owned())])])
    }
}

impl fmt::Display for KeyPlaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, entry) in self.0.iter().enumerate() {
            write!(f, "{}{entry}", if n == 0 { "" } else { ", else " })?;
        }
        Ok(())
    }
}

impl Entry {
    /// Parses one entry. A `+` joins two places, and `++` is a plus sign in a name.
    ///
    /// ```
    /// use surehook_core::key::places::Entry;
    ///
    /// let entry = Entry::parse("json:/event + json:/data/id");
    /// assert!(entry.is_err(), "spaces are part of a name");
    /// let entry = Entry::parse("json:/event+json:/data/id").unwrap();
    /// assert_eq!(entry.places().len(), 2);
    /// ```
    ///
    /// # Errors
    ///
    /// [`PlaceError`], with what to write.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        let places: Vec<Place> =
            split(text).iter().map(|part| Place::parse(part)).collect::<Result<_, _>>()?;
        if places.len() > 1 && places.contains(&Place::Request) {
            return Err(PlaceError { part: text.to_owned(), fault: PlaceFault::JoinedRequest });
        }
        Ok(Self(places))
    }

    /// The places, in the order in which their values are joined.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.0
    }

    fn is_always_present(&self) -> bool {
        self.0.iter().all(|place| match place {
            Place::Body | Place::Request => true,
            Place::Header(_) | Place::Json(_) | Place::Form(_) | Place::Query(_) => false,
        })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, place) in self.0.iter().enumerate() {
            write!(f, "{}{place}", if n == 0 { "" } else { "+" })?;
        }
        Ok(())
    }
}

/// Splits at each `+`. A `++` becomes a plus sign.
fn split(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            '+' if rest.next_if_eq(&'+').is_some() => part.push('+'),
            '+' => parts.push(core::mem::take(&mut part)),
            other => part.push(other),
        }
    }
    parts.push(part);
    parts
}

impl Place {
    fn parse(part: &str) -> Result<Self, PlaceError> {
        let refused = |fault| PlaceError { part: part.to_owned(), fault };
        if part.len() > MAX_PLACE_BYTES {
            return Err(refused(PlaceFault::TooLong));
        }
        match part.split_once(':') {
            Some(("header", name)) => header(name).map(Self::Header),
            Some(("json", pointer)) => {
                Pointer::parse(pointer).map(Self::Json).map_err(PlaceFault::Pointer)
            }
            Some(("form", field)) => named(field).map(Self::Form),
            Some(("query", name)) => named(name).map(Self::Query),
            None if part == "body" => Ok(Self::Body),
            None if part == "request" => Ok(Self::Request),
            _ => Err(PlaceFault::Unknown),
        }
        .map_err(refused)
    }

    fn needs_body(&self) -> bool {
        match self {
            Self::Header(_) | Self::Query(_) => false,
            // The id of an event is chosen when its body has arrived.
            Self::Json(_) | Self::Form(_) | Self::Body | Self::Request => true,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = match self {
            Self::Header(name) => ("header:", name.as_str()),
            Self::Json(pointer) => ("json:", pointer.as_str()),
            Self::Form(name) => ("form:", name.as_str()),
            Self::Query(name) => ("query:", name.as_str()),
            Self::Body => ("body", ""),
            Self::Request => ("request", ""),
        };
        write!(f, "{kind}{}", name.replace('+', "++"))
    }
}

/// The name of a header that may carry a key: keys are stored and shown.
fn header(name: &str) -> Result<String, PlaceFault> {
    // RFC 9110 §5.6.2.
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(PlaceFault::NoHeaderName);
    }
    let lower = name.to_ascii_lowercase();
    // Another Surehook sends its event id in this header. It is a very good key, although the
    // header itself is not forwarded.
    if Forwarding::new(core::iter::empty(), false).allows(&lower) || lower == EVENT_ID_HEADER {
        Ok(name.to_owned())
    } else {
        Err(PlaceFault::ForbiddenHeader)
    }
}

fn named(name: &str) -> Result<String, PlaceFault> {
    if name.is_empty() { Err(PlaceFault::NoName) } else { Ok(name.to_owned()) }
}

/// A text of the configuration that is not a place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` {fault}", .part.escape_debug())]
pub struct PlaceError {
    /// The invalid text.
    pub part: String,
    /// What is wrong with it, and what to write.
    pub fault: PlaceFault,
}

/// Why a text is not a place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceFault {
    /// It does not begin with the name of a kind of place.
    #[error(
        "is not a place for an idempotency key: write `header:NAME`, `json:/POINTER`, `form:FIELD`, `query:NAME`, `body` or `request`"
    )]
    Unknown,
    /// It is longer than [`MAX_PLACE_BYTES`].
    #[error("is longer than 255 bytes")]
    TooLong,
    /// The name of a header is empty or has an invalid character.
    #[error("does not name a header: write for example `header:Idempotency-Key`")]
    NoHeaderName,
    /// The header belongs to the connection, or its value is a secret.
    #[error(
        "cannot carry the idempotency key: it is a credential, belongs to the connection or is reserved (keys are stored and shown). \
         Write the header with the producer's event id, such as `header:Idempotency-Key`"
    )]
    ForbiddenHeader,
    /// The pointer is not valid.
    #[error(transparent)]
    Pointer(PointerError),
    /// The name of a field or parameter is empty.
    #[error("has no name after the colon: write for example `form:id`")]
    NoName,
    /// `request` is joined with another place.
    #[error(
        "joins `request` with another place: such a key would be new for every request. Write `request` alone"
    )]
    JoinedRequest,
}

/// Why a list of places is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacesError {
    /// The list is empty.
    #[error("the list is empty: write at least one place, such as \"header:Idempotency-Key\"")]
    Empty,
    /// The list has more than [`MAX_PLACES`] places.
    #[error("more than 16 places: remove some")]
    TooMany,
    /// An entry before the last one always has a value.
    #[error("every request has a `{entry}`, so the places after it are never used: write it last")]
    Unreachable {
        /// That entry.
        entry: String,
    },
}
