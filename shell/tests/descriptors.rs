//! A delivery for which the process has no free file descriptor. This test is the only one in its
//! process, because it lowers the limit of the process.

#![allow(clippy::disallowed_methods, reason = "this test runs in real time")]

use bytes::Bytes;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::fs::File;
use std::time::Duration;
use surehook::config::{Destination, Source};
use surehook::descriptors;
use surehook::downstream::HttpDownstream;
use surehook::ports::Downstream;
use surehook_core::source::SourceName;
use surehook_core::verdict::Reply;
use surehook_core::worker::claims::Claim;
use tokio::net::TcpListener;

/// A low limit, so that the test can use it up quickly.
const LIMIT: u64 = 128;

#[tokio::test]
async fn a_delivery_without_a_descriptor_is_not_sent_and_not_failed() {
    // The kernel completes connections that no process accepts, so the deliveries below wait for
    // their response until their timeout.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let source = |name: &str| SourceName::parse(name).unwrap();
    let sources = [("by-address", "127.0.0.1"), ("by-name", "localhost")].map(|(name, host)| {
        let destination = Destination::new(format!("http://{host}:{port}/").parse().unwrap());
        (source(name), Source::new(destination))
    });
    let downstream = HttpDownstream::new(&BTreeMap::from(sources)).unwrap();
    let send = |name: &str, limit| {
        let event = "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e".parse().unwrap();
        downstream.send(
            &Claim::first(
                event,
                source(name),
                jiff::Timestamp::UNIX_EPOCH,
                Bytes::new(),
                Bytes::from_static(b"\r\n"),
                Bytes::new(),
            ),
            limit,
        )
    };

    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, LIMIT, hard).unwrap();
    let hoard: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(hoard.len() < 128 && descriptors::are_exhausted());
    for name in ["by-address", "by-name"] {
        assert_eq!(send(name, Duration::from_secs(20)).await, Reply::NotSent, "{name}");
    }

    drop(hoard);
    assert!(!descriptors::are_exhausted());
    for name in ["by-address", "by-name"] {
        let reply = send(name, Duration::from_millis(300)).await;
        assert!(
            matches!(reply, Reply::Failed(_)),
            "{name} was sent and must fail, because the server never responds: {reply:?}"
        );
    }

    assert_eq!(descriptors::raise_limit(), (hard != RLIM_INFINITY).then_some(hard));
    assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
}
