//! The HTTP client of the deliveries, and its connection settings.
//!
//! A pooled connection stays at the address that the destination's name had when it was opened, and
//! the pool keeps a busy connection indefinitely. So the client is replaced after
//! [`Connecting::max_age`]. New deliveries look up the name again and open new connections.
//! Deliveries in flight finish on the old client, and its pooled connections are closed. The new
//! client has the TLS configuration of the old one, so that its handshakes resume the TLS sessions.

use super::ended::Connector;
use super::pieces::Pieces;
use crate::lookups;
use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use reqwest::dns::{Addrs, Resolve};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tower_service::Service;

pub(super) type Client = legacy::Client<Connector<HttpsConnector<HttpConnector<Names>>>, Pieces>;

/// How long a client is used for new deliveries. After this time, a change of a destination's
/// address is in effect.
const MAX_AGE: Duration = Duration::from_secs(30);
/// How long an idle connection is kept for the next delivery.
const KEEP_IDLE: Duration = Duration::from_secs(30);
/// Maximum number of idle connections for one host.
const KEEP_IDLE_PER_HOST: usize = 64;
/// After this time without traffic, a connection is probed.
const PROBE_AFTER: Duration = Duration::from_secs(15);
const PROBE_EVERY: Duration = Duration::from_secs(15);
const PROBES: u32 = 3;
/// How long sent bytes may stay unacknowledged before the connection is closed.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// How long the opening of a connection may take. The client continues to open it if its delivery
/// got another connection in the meantime.
const OPENED_WITHIN: Duration = Duration::from_secs(30);
/// The part of it that TCP may take, over all addresses of the destination. It is divided between
/// them, so that an address that does not answer leaves time for the next one.
const TCP_PART: u32 = 3;
/// Maximum number of headers of a response. hyper reserves 64 bytes for each of them whenever it
/// reads a response head.
const MAX_RESPONSE_HEADERS: usize = 1024;

/// How connections are made, and for how long they are used.
#[derive(Clone)]
pub struct Connecting {
    /// How long connections are used for new deliveries, counted from the creation of their client.
    pub max_age: Duration,
    /// How long the opening of a connection may take: the lookup, TCP and TLS.
    pub opened_within: Duration,
    /// Looks up the names of destinations.
    pub resolver: Arc<dyn Resolve>,
    /// For https destinations. `None` if there are none.
    pub tls: Option<ClientConfig>,
}

impl Connecting {
    /// Settings with the system's resolver. With `tls`, certificates are verified with the root
    /// certificates of the platform, which are read now. The process gets ring as its TLS provider
    /// if it has none.
    ///
    /// # Errors
    ///
    /// The root certificates cannot be read.
    pub(super) fn by_the_system(tls: bool) -> Result<Self, rustls::Error> {
        provide_tls();
        let tls = if tls {
            let mut config =
                ClientConfig::builder().with_platform_verifier()?.with_no_client_auth();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Some(config)
        } else {
            // Without https destinations, a machine without CA certificates must be able to
            // deliver.
            None
        };
        let resolver = Arc::new(lookups::system());
        Ok(Self { max_age: MAX_AGE, opened_within: OPENED_WITHIN, resolver, tls })
    }

    pub(super) fn client(&self) -> Client {
        let mut tcp = HttpConnector::new_with_resolver(Names(Arc::clone(&self.resolver)));
        // Otherwise it refuses the connections under TLS.
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(self.opened_within / TCP_PART));
        tcp.set_keepalive(Some(PROBE_AFTER));
        tcp.set_keepalive_interval(Some(PROBE_EVERY));
        tcp.set_keepalive_retries(Some(PROBES));
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let tls = self.tls.clone().unwrap_or_else(without_roots);
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEEP_IDLE)
            .pool_max_idle_per_host(KEEP_IDLE_PER_HOST);
        lenient(&mut builder);
        builder.build(Connector::new(HttpsConnector::from((tcp, tls)), self.opened_within))
    }
}

/// Trusts no certificate.
fn without_roots() -> ClientConfig {
    ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth()
}

/// The client requires a TLS provider even if no destination uses TLS.
fn provide_tls() {
    // Fails only if a provider is already installed, which is sufficient.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Skips malformed response headers. The status decides, so a malformed header must not cause
/// another delivery of the event.
fn lenient(builder: &mut legacy::Builder) {
    builder
        .http1_max_headers(MAX_RESPONSE_HEADERS)
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_ignore_invalid_headers_in_responses(true);
}

/// Looks up names for the client's connections.
#[derive(Clone)]
pub(super) struct Names(Arc<dyn Resolve>);

impl Service<Name> for Names {
    type Response = Addrs;
    type Error = LookupFailed;
    type Future = BoxFuture<'static, Result<Addrs, LookupFailed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LookupFailed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        match name.as_str().parse() {
            Ok(name) => self.0.resolve(name).map_err(LookupFailed).boxed(),
            Err(_) => futures::future::ready(Err(LookupFailed("not a host name".into()))).boxed(),
        }
    }
}

/// The name of a destination was not found.
#[derive(Debug, thiserror::Error)]
#[error("DNS lookup failed")]
pub(super) struct LookupFailed(#[source] Box<dyn Error + Send + Sync>);

/// The current client, which is replaced when it is too old.
pub(super) struct Clients {
    connecting: Connecting,
    current: Mutex<Current>,
}

struct Current {
    client: Client,
    since: Instant,
}

impl Clients {
    pub(super) fn new(connecting: Connecting) -> Self {
        provide_tls();
        let client = connecting.client();
        Self { connecting, current: Mutex::new(Current { client, since: Instant::now() }) }
    }

    /// Returns the client for a delivery that starts now.
    pub(super) fn get(&self) -> Client {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.since.elapsed() >= self.connecting.max_age {
            *current = Current { client: self.connecting.client(), since: Instant::now() };
        }
        current.client.clone()
    }
}
