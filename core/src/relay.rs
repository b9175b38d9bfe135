//! Which requests of a source are relayed: passed to the destination at once, and not stored. They
//! are the handshakes of producers, whose answer only the downstream knows.
//!
//! The setting is a list of rules. A request is relayed if one of them matches. A request that is
//! not a `POST` is never an event. The media type of the request is ignored: some producers send a
//! wrong one.

use crate::key::places::Head;
use crate::key::pointer::{Found, Pointer};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// The maximum number of rules of one source. It bounds the time of a decision: each rule reads the
/// body once at most.
pub const MAX_RULES: usize = 16;

/// The maximum length in bytes of a name and of a value in a rule.
pub const MAX_TEXT_BYTES: usize = 255;

/// The method of a webhook request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The method of events. It is relayed if its content says so.
    Post,
    /// Often carries a challenge in its query.
    Get,
    /// Asks whether the URL exists.
    Head,
    /// The validation of the `CloudEvents` specification.
    Options,
}

impl Method {
    /// All methods.
    pub const ALL: [Self; 4] = [Self::Post, Self::Get, Self::Head, Self::Options];

    /// The name in a request.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Post => "POST",
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
        }
    }

    /// The method with this name, in upper case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == name)
    }
}

/// The rules of a source. Without a rule, no request is relayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayRules(Vec<Rule>);

/// One kind of request that is relayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Requests with this method, which is not `POST`.
    Method(Method),
    /// A `POST` with this part.
    Part {
        /// The part of the request.
        part: Part,
        /// The value that it must have. `None`: any value.
        equals: Option<String>,
    },
}

/// A part of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A header, by its name.
    Header(String),
    /// A member of a JSON body.
    Json(Pointer),
    /// A parameter of the query.
    Query(String),
}

impl RelayRules {
    /// Creates the list.
    ///
    /// # Errors
    ///
    /// [`RelayError`] if it is too long, or if a rule names `POST`, a name is not valid, or a text is
    /// too long.
    pub fn new(rules: Vec<Rule>) -> Result<Self, RelayError> {
        if rules.len() > MAX_RULES {
            return Err(RelayError::TooMany);
        }
        rules.iter().try_for_each(Rule::check)?;
        Ok(Self(rules))
    }

    /// The rules, in the order of the configuration.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.0
    }

    /// Whether requests with this method are accepted: `POST`, and those that are relayed.
    #[must_use]
    pub fn accepts(&self, method: Method) -> bool {
        method == Method::Post || self.0.contains(&Rule::Method(method))
    }

    /// Whether a request is relayed, as far as this is known before its body was read. `None`: the
    /// body decides, so call [`Self::matches_body`] when it was read.
    ///
    /// A request whose method is not [accepted](Self::accepts) must not be decided here.
    #[must_use]
    pub fn matches_head<'r, I: Iterator<Item = &'r [u8]>>(
        &self,
        method: Method,
        head: &Head<'r, impl Fn(&str) -> I>,
    ) -> Option<bool> {
        if method != Method::Post {
            return Some(true);
        }
        if self.parts().any(|(part, equals)| part.is_in_head(equals, head)) {
            return Some(true);
        }
        if self.parts().any(|(part, _)| matches!(part, Part::Json(_))) { None } else { Some(false) }
    }

    /// Whether a `POST` with this body is relayed, if its head did not decide it.
    #[must_use]
    pub fn matches_body(&self, body: &[u8]) -> bool {
        self.parts().any(|(part, equals)| part.is_in_body(equals, body))
    }

    fn parts(&self) -> impl Iterator<Item = (&Part, Option<&str>)> {
        self.0.iter().filter_map(|rule| match rule {
            Rule::Method(_) => None,
            Rule::Part { part, equals } => Some((part, equals.as_deref())),
        })
    }
}

impl fmt::Display for RelayRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, rule) in self.0.iter().enumerate() {
            write!(f, "{}{rule}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Rule {
    fn check(&self) -> Result<(), RelayError> {
        let (part, equals) = match self {
            Self::Method(Method::Post) => return Err(RelayError::Post),
            Self::Method(Method::Get | Method::Head | Method::Options) => return Ok(()),
            Self::Part { part, equals } => (part, equals),
        };
        let name = match part {
            Part::Header(name) if !is_token(name) => return Err(RelayError::Header),
            Part::Query(name) if name.is_empty() => return Err(RelayError::Parameter),
            Part::Header(name) | Part::Query(name) => name,
            Part::Json(pointer) => pointer.as_str(),
        };
        let longest = name.len().max(equals.as_ref().map_or(0, String::len));
        if longest > MAX_TEXT_BYTES { Err(RelayError::TooLong) } else { Ok(()) }
    }
}

/// Whether a text can be the name of a header (RFC 9110 §5.6.2).
fn is_token(name: &str) -> bool {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_valid)
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (part, equals) = match self {
            Self::Method(method) => return f.write_str(method.as_str()),
            Self::Part { part, equals } => (part, equals),
        };
        match part {
            Part::Header(name) => write!(f, "header:{name}")?,
            Part::Json(pointer) => write!(f, "json:{}", pointer.as_str())?,
            Part::Query(name) => write!(f, "query:{name}")?,
        }
        match equals {
            Some(value) => write!(f, "={value}"),
            None => Ok(()),
        }
    }
}

impl Part {
    fn is_in_head<'r, I: Iterator<Item = &'r [u8]>>(
        &self,
        equals: Option<&str>,
        head: &Head<'r, impl Fn(&str) -> I>,
    ) -> bool {
        match self {
            Self::Header(name) => (head.header)(name)
                .any(|value| equals.is_none_or(|wanted| value == wanted.as_bytes())),
            Self::Query(name) => {
                form_urlencoded::parse(head.query.as_bytes()).any(|(other, value)| {
                    other == name.as_str() && equals.is_none_or(|wanted| value == wanted)
                })
            }
            Self::Json(_) => false,
        }
    }

    fn is_in_body(&self, equals: Option<&str>, body: &[u8]) -> bool {
        match self {
            Self::Json(pointer) => match (pointer.find(body), equals) {
                (Ok(Some(_)), None) => true,
                (Ok(Some(Found::Text(text))), Some(wanted)) => text == wanted,
                (Ok(Some(Found::Integer(digits))), Some(wanted)) => digits == wanted,
                (Ok(Some(Found::Other(_)) | None) | Err(_), _) => false,
            },
            Self::Header(_) | Self::Query(_) => false,
        }
    }
}

/// Why a list of rules is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// The list has more than [`MAX_RULES`] rules.
    #[error("more than 16 rules: remove some")]
    TooMany,
    /// A rule names the method of events.
    #[error(
        "`POST` is the method of events: write which of them are relayed, such as {{ json = \"/type\", equals = \"url_verification\" }}"
    )]
    Post,
    /// The name of a header is empty or has an invalid character.
    #[error("not the name of a header: write for example {{ header = \"X-Hook-Secret\" }}")]
    Header,
    /// The name of a query parameter is empty.
    #[error("the parameter has no name: write for example {{ query = \"validationToken\" }}")]
    Parameter,
    /// A name or a value is longer than [`MAX_TEXT_BYTES`].
    #[error("longer than 255 bytes: write a shorter text")]
    TooLong,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::borrow::ToOwned;
    use alloc::format;
    use alloc::string::ToString;
    use alloc::vec;
    use proptest::prelude::*;

    fn part(part: Part, equals: Option<&str>) -> Rule {
        Rule::Part { part, equals: equals.map(ToOwned::to_owned) }
    }

    fn header(name: &str, equals: Option<&str>) -> Rule {
        part(Part::Header(name.to_owned()), equals)
    }

    fn query(name: &str, equals: Option<&str>) -> Rule {
        part(Part::Query(name.to_owned()), equals)
    }

    fn json(pointer: &str, equals: Option<&str>) -> Rule {
        part(Part::Json(Pointer::parse(pointer).unwrap()), equals)
    }

    fn relay(rules: &[Rule]) -> RelayRules {
        RelayRules::new(rules.to_vec()).unwrap()
    }

    /// Whether a request with these headers, this query and this body is relayed.
    fn is_relayed(
        relay: &RelayRules,
        method: Method,
        headers: &[(&str, &[u8])],
        query: &str,
        body: &[u8],
    ) -> bool {
        let header = |wanted: &str| {
            let wanted = wanted.to_ascii_lowercase();
            let values: Vec<&[u8]> = headers
                .iter()
                .filter(|(name, _)| name.to_ascii_lowercase() == wanted)
                .map(|(_, value)| *value)
                .collect();
            values.into_iter()
        };
        let by_head = relay.matches_head(method, &Head { header, query });
        by_head.unwrap_or_else(|| relay.matches_body(body))
    }

    #[test]
    fn without_rules_no_post_is_relayed_and_no_other_method_accepted() {
        let none = RelayRules::default();
        assert!(!is_relayed(&none, Method::Post, &[("x", b"1")], "a=1", b"{\"a\":1}"));
        for method in Method::ALL {
            assert_eq!(none.accepts(method), method == Method::Post);
        }
    }

    #[test]
    fn a_method_is_relayed_only_if_it_is_named() {
        let relay = relay(&[Rule::Method(Method::Get)]);
        assert!(relay.accepts(Method::Get) && relay.accepts(Method::Post));
        assert!(!relay.accepts(Method::Head) && !relay.accepts(Method::Options));
        assert!(is_relayed(&relay, Method::Get, &[], "", b""));
        assert!(!is_relayed(&relay, Method::Post, &[], "", b""));
    }

    #[test]
    fn a_header_is_relayed_by_presence_or_by_value() {
        let present = relay(&[header("X-Hook-Secret", None)]);
        assert!(is_relayed(&present, Method::Post, &[("x-hook-secret", b"")], "", b""));
        assert!(!is_relayed(&present, Method::Post, &[("x-hook", b"")], "", b""));
        let value = relay(&[header("x-goog-resource-state", Some("sync"))]);
        let post = |value: &[u8]| ("X-Goog-Resource-State", value.to_vec());
        for (values, expected) in [
            (vec![post(b"sync")], true),
            (vec![post(b"exists"), post(b"sync")], true),
            (vec![post(b"Sync")], false),
            (vec![post(b"sync ")], false),
            (vec![post(b"\xff")], false),
        ] {
            let headers: Vec<(&str, &[u8])> =
                values.iter().map(|(name, value)| (*name, value.as_slice())).collect();
            assert_eq!(is_relayed(&value, Method::Post, &headers, "", b""), expected, "{values:?}");
        }
    }

    #[test]
    fn a_query_parameter_is_relayed_by_presence_or_by_value() {
        let present = relay(&[query("validationToken", None)]);
        for (query, expected) in [
            ("validationToken=", true),
            ("a&validation%54oken", true),
            ("validationtoken=1", false),
            ("", false),
        ] {
            assert_eq!(is_relayed(&present, Method::Post, &[], query, b""), expected, "{query}");
        }
        let value = relay(&[query("mode", Some("a b"))]);
        for (query, expected) in
            [("mode=a+b", true), ("mode=x&mode=a%20b", true), ("mode=a", false), ("mode", false)]
        {
            assert_eq!(is_relayed(&value, Method::Post, &[], query, b""), expected, "{query}");
        }
    }

    #[test]
    fn a_json_member_is_relayed_by_presence_or_by_value() {
        let present = relay(&[json("/challenge", None)]);
        for (body, expected) in [
            (&b"{\"challenge\":\"x\"}"[..], true),
            (b"{\"challenge\":null}", true),
            (b"{\"challenge\":{}}", true),
            (b"{\"event\":{\"challenge\":1}}", false),
            (b"{\"challenge\":", false),
            (b"challenge=x", false),
            (b"", false),
        ] {
            assert_eq!(is_relayed(&present, Method::Post, &[], "", body), expected);
        }
        let value = relay(&[json("/type", Some("1"))]);
        for (body, expected) in [
            (&b"{\"type\":1}"[..], true),
            (b"{\"type\":\"1\"}", true),
            (b"{\"type\":\"\\u0031\"}", true),
            (b"{\"type\":1.0}", false),
            (b"{\"type\":[1]}", false),
            (b"{\"type\":null}", false),
        ] {
            assert_eq!(is_relayed(&value, Method::Post, &[], "", body), expected);
        }
    }

    #[test]
    fn the_body_is_read_only_if_a_rule_needs_it() {
        let head = || Head { header: |_: &str| core::iter::empty::<&[u8]>(), query: "a" };
        let both = relay(&[query("a", None), json("/a", None)]);
        assert_eq!(both.matches_head(Method::Post, &head()), Some(true));
        let other = relay(&[query("b", None), json("/a", None)]);
        assert_eq!(other.matches_head(Method::Post, &head()), None);
        let no_body = relay(&[query("b", None), Rule::Method(Method::Get)]);
        assert_eq!(no_body.matches_head(Method::Post, &head()), Some(false));
    }

    #[test]
    fn rules_that_cannot_match_are_refused() {
        let long = "x".repeat(MAX_TEXT_BYTES + 1);
        for (rule, error) in [
            (Rule::Method(Method::Post), RelayError::Post),
            (header("", None), RelayError::Header),
            (header("a b", None), RelayError::Header),
            (header("é", None), RelayError::Header),
            (query("", None), RelayError::Parameter),
            (header(&long, None), RelayError::TooLong),
            (query("a", Some(&long)), RelayError::TooLong),
        ] {
            assert_eq!(RelayRules::new(vec![rule]), Err(error));
        }
        let rules = vec![query("a", None); MAX_RULES];
        assert!(RelayRules::new(rules.clone()).is_ok());
        assert_eq!(
            RelayRules::new([rules, vec![query("a", None)]].concat()),
            Err(RelayError::TooMany)
        );
    }

    #[test]
    fn a_list_is_shown_as_its_rules() {
        let shown = relay(&[
            Rule::Method(Method::Get),
            header("X-A", None),
            json("/type", Some("ping")),
            query("t", Some("1")),
        ])
        .to_string();
        assert_eq!(shown, "GET, header:X-A, json:/type=ping, query:t=1");
    }

    proptest! {
        /// What any other part of the request says does not matter.
        #[test]
        fn a_post_is_relayed_exactly_if_one_rule_alone_relays_it(
            names in proptest::collection::vec("[ab]", 0..3),
            values in proptest::collection::vec("[xy]", 3),
            rules in proptest::collection::vec((0..3u8, "[ab]", proptest::option::of("[xy]")), 0..4),
        ) {
            let rules: Vec<Rule> = rules
                .iter()
                .map(|(kind, name, equals)| match kind {
                    0 => header(name, equals.as_deref()),
                    1 => query(name, equals.as_deref()),
                    _ => json(&format!("/{name}"), equals.as_deref()),
                })
                .collect();
            let pairs: Vec<(&String, &String)> = names.iter().zip(&values).collect();
            let headers: Vec<(&str, &[u8])> =
                pairs.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
            let posted: Vec<String> =
                pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let members: Vec<String> =
                pairs.iter().map(|(name, value)| format!("\"{name}\":\"{value}\"")).collect();
            let body = format!("{{{}}}", members.join(","));
            let relays = |rules: &[Rule]| {
                is_relayed(&relay(rules), Method::Post, &headers, &posted.join("&"), body.as_bytes())
            };
            let alone = rules.iter().any(|rule| relays(core::slice::from_ref(rule)));
            prop_assert_eq!(relays(&rules), alone);
        }
    }
}
