//! The query of a delivery's URL: that of the destination, and then the producer's.
//!
//! The parameters in the URL of a destination are the operator's, and can be a credential or the
//! name of a tenant. The producer's query comes from anyone who can post to the source. If both
//! have a parameter, some servers use the first and others the last value. So a parameter of the
//! producer is dropped if the destination has one that a server may take for the same. All others
//! are forwarded byte for byte, because some producers sign the URL.

use super::as_seen;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

/// The query of a delivery, without `?`. `own` is the query of the destination, and `posted` that
/// of the producer's request. Empty if there is none.
///
/// ```
/// use surehook_core::forwarding::query::joined;
///
/// assert_eq!(joined("", "b=1&&a=%2f"), "b=1&&a=%2f");
/// assert_eq!(joined("tenant=acme", "n=1&tenant=other&m=2"), "tenant=acme&n=1&m=2");
/// ```
#[must_use]
pub fn joined(own: &str, posted: &str) -> String {
    if own.is_empty() {
        return String::from(posted);
    }
    let taken: BTreeSet<String> = own.split('&').flat_map(names).collect();
    let is_free = |pair: &&str| names(pair).all(|name| !taken.contains(&name));
    let mut parts = Vec::from([own]);
    parts.extend(posted.split('&').filter(|_| !posted.is_empty()).filter(is_free));
    parts.join("&")
}

/// The names that a server may find in one part of a query. Some servers separate parameters at
/// semicolons, too.
fn names(part: &str) -> impl Iterator<Item = String> {
    core::iter::once(part).chain(part.split(';')).flat_map(names_of_one)
}

/// The names of a parameter as servers may see them, without empty ones. PHP ignores spaces before a
/// name, ends it at a NUL, makes an array of `a[]`, and finds `a_b` in `a[b`. Rack 2 finds `a` in
/// `[a]` and `a]`, too, and `qs` in `[a]`. Case is ignored, as in the names of headers.
fn names_of_one(parameter: &str) -> impl Iterator<Item = String> {
    let pair = form_urlencoded::parse(parameter.as_bytes()).next();
    let whole = pair.map(|(name, _)| name.to_lowercase()).unwrap_or_default();
    let begun = whole.trim_start().trim_start_matches(['[', ']']);
    let line = begun.split('\0').next().unwrap_or_default();
    let cut = line.split(['[', ']']).next().unwrap_or_default();
    let seen =
        [if cut.is_empty() { &whole } else { cut }, line].map(|name| as_seen(name).into_owned());
    seen.into_iter().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_query_of_the_producer_is_unchanged_without_one_of_the_destination() {
        for query in ["", "a", "a=b", "a=1&a=2", "&&", "=", "a;b=%zz", "é", "q=a'b"] {
            assert_eq!(joined("", query), query);
        }
    }

    #[test]
    fn parameters_of_the_destination_come_first() {
        assert_eq!(joined("token=t", ""), "token=t");
        assert_eq!(joined("token=t", "a=%2F&b"), "token=t&a=%2F&b");
        assert_eq!(joined("token=t&", "a"), "token=t&&a");
    }

    #[test]
    fn a_producer_cannot_set_a_parameter_of_the_destination_in_any_spelling() {
        for spelled in [
            "tenant.id=x",
            "tenant_id=x",
            "Tenant.ID=x",
            "%74enant.id=x",
            "tenant%2Eid=x",
            "+tenant.id=x",
            "%20tenant.id=x",
            "tenant.id[]=x",
            "tenant.id%5B%5D=x",
            "tenant.id%00=x",
            "[tenant.id]=x",
            "[[tenant.id=x",
            "]tenant.id=x",
            "tenant.id]=x",
            "tenant[id=x",
            "tenant%5Bid=x",
            "%5Btenant.id%5D=x",
            "tenant.id",
            "a=1;tenant.id=x",
        ] {
            assert_eq!(joined("tenant.id=acme", spelled), "tenant.id=acme", "{spelled}");
            let among = alloc::format!("a=1&{spelled}&b=2");
            assert_eq!(joined("tenant.id=acme", &among), "tenant.id=acme&a=1&b=2", "{spelled}");
        }
        for other in [
            "tenant=x",
            "tenant.id2=x",
            "x=tenant.id",
            "=tenant.id",
            "x[tenant.id]=x",
            "tenant[id]=x",
        ] {
            let expected = alloc::format!("tenant.id=acme&{other}");
            assert_eq!(joined("tenant.id=acme", other), expected);
        }
    }

    /// The parameters as a common server parses them.
    fn parsed(query: &str) -> Vec<(String, String)> {
        form_urlencoded::parse(query.as_bytes()).into_owned().collect()
    }

    fn query() -> impl Strategy<Value = String> {
        proptest::collection::vec("(%[0-9a-fA-F]{2}|[a-cA-C.;_=+\\[])?[a-c=]{0,3}", 0..4)
            .prop_map(|pairs| pairs.join("&"))
    }

    proptest! {
        #[test]
        fn the_destinations_parameters_are_kept_and_never_set_again(own in query(), posted in query()) {
            let joined = parsed(&joined(&own, &posted));
            let (own, posted) = (parsed(&own), parsed(&posted));
            prop_assert_eq!(&joined[..own.len()], &own[..]);
            for (name, _) in joined[own.len()..].iter().filter(|(name, _)| !name.is_empty()) {
                prop_assert!(own.iter().all(|(taken, _)| taken != name), "{} is set again", name);
            }
            if own.is_empty() {
                prop_assert_eq!(joined, posted);
            }
        }

        #[test]
        fn other_parameters_keep_their_bytes_and_their_order(
            posted in proptest::collection::vec("[b-z]{1,3}(=[!$'()*,/:?@%0-9A-Za-z.~_-]{0,6})?", 0..5)
        ) {
            let posted = posted.join("&");
            let expected = if posted.is_empty() { String::from("a=1") } else { alloc::format!("a=1&{posted}") };
            prop_assert_eq!(joined("a=1", &posted), expected);
        }
    }
}
