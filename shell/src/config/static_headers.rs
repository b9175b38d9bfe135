//! The headers that a configuration adds to each request to a destination. Their values are secret.

use super::limits;
use bytesize::ByteSize;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;
use surehook_core::forwarding::{NotSettable, is_same, settable};

/// Headers with different names, in any spelling. Displayed without their values.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StaticHeaders(Vec<(HeaderName, HeaderValue)>);

impl StaticHeaders {
    /// Checks the number and the size of headers, and that no name occurs twice.
    ///
    /// # Errors
    ///
    /// What is wrong and what to do.
    pub fn new(mut headers: Vec<(HeaderName, HeaderValue)>) -> Result<Self, String> {
        if headers.len() > limits::HEADERS {
            return Err(format!("more than {} headers: remove some", limits::HEADERS));
        }
        let size: usize =
            headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if size > limits::HEADERS_BYTES {
            return Err(format!(
                "the headers have more than {} together: shorten them",
                ByteSize(limits::HEADERS_BYTES as u64).display().iec()
            ));
        }
        for (n, (name, _)) in headers.iter().enumerate() {
            if headers[..n].iter().any(|(other, _)| is_same(other.as_str(), name.as_str())) {
                return Err(format!(
                    "`{name}` is set twice, and spelling makes no difference: keep one of them"
                ));
            }
        }
        headers.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
        Ok(Self(headers))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn has(&self, name: &HeaderName) -> bool {
        self.0.iter().any(|(other, _)| other == name)
    }

    /// Sets the headers. They replace all headers of the same name, in any spelling.
    pub fn set_in(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.0 {
            let replaced: Vec<HeaderName> = (headers.keys())
                .filter(|other| is_same(other.as_str(), name.as_str()))
                .cloned()
                .collect();
            for other in replaced {
                headers.remove(other);
            }
            headers.insert(name.clone(), value.clone());
        }
    }
}

impl fmt::Display for StaticHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, _)) in self.0.iter().enumerate() {
            write!(f, "{}{name}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl fmt::Debug for StaticHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A name that a configuration can set.
pub(super) fn name(text: &str) -> Result<HeaderName, String> {
    let quoted = super::values::quoted(text);
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
        format!("{quoted} is not the name of a header: write for example `Authorization`")
    })?;
    match settable(name.as_str()) {
        Ok(()) => Ok(name),
        Err(why) => Err(format!(
            "{quoted} cannot be set: {}; remove it",
            match why {
                NotSettable::Connection => "it concerns one connection and not the request",
                NotSettable::OfEachRequest => "each request has its own",
                NotSettable::Own => "Surehook sets the headers whose names begin with `Surehook-`",
                NotSettable::Proxy => "a CGI program would use it as the address of its proxy",
            }
        )),
    }
}

/// The value of a header. No message contains it.
pub(super) fn value(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        "not the value of a header, and not shown: write visible ASCII characters and spaces, without a line break"
            .to_owned()
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(written: &[(&str, &str)]) -> Result<StaticHeaders, String> {
        let header = |(header, text): &(&str, &str)| Ok((name(header)?, value(text)?));
        StaticHeaders::new(written.iter().map(header).collect::<Result<_, String>>()?)
    }

    #[test]
    fn a_static_header_replaces_each_spelling_of_the_producers_header() {
        let mut sent = HeaderMap::new();
        for (name, value) in [("x_token", "forged"), ("x-other", "kept"), ("x-token", "forged")] {
            sent.append(name, HeaderValue::from_static(value));
        }
        sent.append("x-token", HeaderValue::from_static("forged again"));
        headers(&[("X-Token", "hunter2"), ("Accept", "text/plain")]).unwrap().set_in(&mut sent);
        let mut found: Vec<_> =
            sent.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        found.sort_unstable();
        assert_eq!(found, [("accept", "text/plain"), ("x-other", "kept"), ("x-token", "hunter2")]);
    }

    #[test]
    fn the_values_of_static_headers_are_never_shown() {
        let set = headers(&[("Authorization", "hunter2"), ("X-A", "hunter3")]).unwrap();
        assert_eq!(set.to_string(), "authorization, x-a");
        let mut sent = HeaderMap::new();
        set.set_in(&mut sent);
        for shown in [format!("{set:?}"), format!("{sent:?}"), value("hunter\n").unwrap_err()] {
            assert!(!shown.contains("hunter"), "{shown}");
        }
    }

    #[test]
    fn the_number_and_the_size_of_static_headers_are_bounded() {
        let names: Vec<String> = (0..=limits::HEADERS).map(|n| format!("x-{n}")).collect();
        let of =
            |count: usize| names[..count].iter().map(|name| (&**name, "v")).collect::<Vec<_>>();
        assert!(headers(&of(limits::HEADERS)).is_ok());
        assert!(headers(&of(limits::HEADERS + 1)).unwrap_err().starts_with("more than 16 headers"));
        let longest = "v".repeat(limits::HEADERS_BYTES - 1);
        assert!(headers(&[("x", &longest)]).is_ok());
        let told = headers(&[("xx", &longest)]).unwrap_err();
        assert!(told.starts_with("the headers have more than 8.0 KiB together"), "{told}");
    }
}
