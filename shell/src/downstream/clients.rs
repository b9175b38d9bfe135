//! The HTTP client of the deliveries, and its connection settings.
//!
//! A pooled connection stays at the address that the destination's name had when it was opened, and
//! the pool keeps a busy connection indefinitely. So the client is replaced after
//! [`Connecting::max_age`]. New deliveries look up the name again and open new connections.
//! Deliveries in flight finish on the old client, and its pooled connections are closed. The new
//! client has the TLS configuration of the old one, so that its handshakes resume the TLS sessions.

use super::DownstreamError;
use crate::lookups;
use reqwest::dns::Resolve;
use reqwest::{Client, ClientBuilder};
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a client is used for new deliveries. After this time, a change of a destination's
/// address is in effect.
const MAX_AGE: Duration = Duration::from_secs(30);
/// How long an idle connection is kept for the next delivery.
const KEEP_IDLE: Duration = Duration::from_secs(30);
/// Maximum number of idle connections for one host.
const KEEP_IDLE_PER_HOST: usize = 64;
/// Maximum number of headers of a response. hyper reserves 64 bytes for each of them whenever it
/// reads a response head.
const MAX_RESPONSE_HEADERS: usize = 1024;

/// How connections are made, and for how long they are used.
#[derive(Clone)]
pub struct Connecting {
    /// How long connections are used for new deliveries, counted from the creation of their client.
    pub max_age: Duration,
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
        Ok(Self { max_age: MAX_AGE, resolver: Arc::new(lookups::system()), tls })
    }

    fn client(&self) -> Result<Client, reqwest::Error> {
        let builder = Client::builder()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .dns_resolver(Arc::clone(&self.resolver))
            .referer(false)
            .tcp_nodelay(true)
            .pool_idle_timeout(KEEP_IDLE)
            .pool_max_idle_per_host(KEEP_IDLE_PER_HOST);
        let builder = match &self.tls {
            Some(tls) => builder.tls_backend_preconfigured(tls.clone()),
            None => builder.tls_certs_only([]),
        };
        lenient(builder).build()
    }
}

/// reqwest requires a TLS provider even if no destination uses TLS.
fn provide_tls() {
    // Fails only if a provider is already installed, which is sufficient.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Skips malformed response headers. The status decides, so a malformed header must not cause
/// another delivery of the event.
fn lenient(builder: ClientBuilder) -> ClientBuilder {
    builder
        .http1_max_headers(MAX_RESPONSE_HEADERS)
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_ignore_invalid_headers_in_responses(true)
}

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
    /// # Errors
    ///
    /// The client cannot be set up.
    pub(super) fn new(connecting: Connecting) -> Result<Self, DownstreamError> {
        provide_tls();
        let client =
            connecting.client().map_err(|error| DownstreamError::Client(error.without_url()))?;
        Ok(Self { connecting, current: Mutex::new(Current { client, since: Instant::now() }) })
    }

    /// Returns the client for a delivery that starts now.
    pub(super) fn get(&self) -> Client {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.since.elapsed() >= self.connecting.max_age {
            current.since = Instant::now();
            match self.connecting.client() {
                Ok(client) => current.client = client,
                Err(error) => {
                    tracing::warn!(%error, "cannot replace the HTTP client; existing connections stay in use");
                }
            }
        }
        current.client.clone()
    }
}
