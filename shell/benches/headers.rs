//! What it costs to keep an event's headers and to read them again, in time and in allocations:
//! `cargo bench -p surehook --bench headers`.

use bytes::Bytes;
use divan::{AllocProfiler, Bencher, black_box};
use http::{HeaderMap, HeaderName, HeaderValue};
use surehook::headers::{decode, encode};
use surehook_core::forwarding::Forwarding;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// Eight headers as a producer sends them, and those that are not forwarded.
fn headers() -> HeaderMap {
    [
        ("host", "hooks.example.com"),
        ("content-length", "1024"),
        ("user-agent", "Example-Hookshot/044aadd"),
        ("accept", "*/*"),
        ("content-type", "application/json"),
        ("idempotency-key", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
        ("x-example-event", "invoice.paid"),
        ("x-example-hook-id", "292430182"),
        (
            "x-example-signature-256",
            "sha256=7d38cdd689735b008b3c702edd92eea23791c5f6f0f0f1f2f3f4f5f6f7f8f9fa",
        ),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ]
    .into_iter()
    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
    .collect()
}

fn kept(headers: &HeaderMap) -> Bytes {
    encode(headers, &Forwarding::new(std::iter::empty(), false))
}

#[divan::bench]
fn encoding(bencher: Bencher) {
    let headers = headers();
    bencher.bench(|| kept(black_box(&headers)));
}

#[divan::bench]
fn decoding(bencher: Bencher) {
    let encoded = kept(&headers());
    bencher.bench(|| decode(black_box(&encoded)));
}
