//! A proxy to PostgreSQL that can cut or silence a connection at the critical moment. It forwards
//! one statement to the server, waits until the server has executed and committed it, and then
//! closes the connection or holds the response back, instead of forwarding the response. It can
//! also refuse or ignore new connections.
//!
//! Only a response with a row is cut or held: a claim that found nothing due has done nothing that
//! could be lost.
//!
//! It knows the necessary part of PostgreSQL's protocol: a message is a letter, a length and a
//! body. `Parse` names a statement, `Bind` runs it, `DataRow` is a row of its response, and
//! `ReadyForQuery` means that it is committed.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A proxy in front of one server. It stops when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    plan: Arc<Plan>,
    task: JoinHandle<()>,
}

/// The response to lose, and the number of those that were lost so far.
#[derive(Debug, Default)]
struct Plan {
    armed: Mutex<Option<Wanted>>,
    lost: watch::Sender<usize>,
    /// Whether responses that are held back are forwarded.
    released: watch::Sender<bool>,
    newcomers: Mutex<Newcomers>,
    refused: AtomicUsize,
}

/// The next response with a row to a statement that contains this text, and how it is lost.
#[derive(Debug)]
struct Wanted {
    text: String,
    loss: Loss,
}

#[derive(Clone, Copy, Debug)]
enum Loss {
    /// The connection is closed.
    Cut,
    /// The connection stays open and silent.
    Held,
}

/// What happens to new connections.
#[derive(Clone, Copy, Debug, Default)]
enum Newcomers {
    #[default]
    Forwarded,
    /// Closed at once.
    Refused,
    /// Kept open, without any response.
    Ignored,
}

impl Proxy {
    /// Listens on a free port and forwards everything to the server on `port` of the loopback
    /// interface.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let plan = Arc::new(Plan::default());
        let task = tokio::spawn(accept(
            listener,
            SocketAddr::from(([127, 0, 0, 1], port)),
            Arc::clone(&plan),
        ));
        Self { address, plan, task }
    }

    /// The URL that leads through this proxy instead of directly to the server. Without TLS, which
    /// the proxy cannot read.
    ///
    /// # Panics
    ///
    /// If the URL has no user or no database.
    #[must_use]
    pub fn through(&self, url: &str) -> String {
        let (before, rest) = url.split_once('@').expect("a test's URL has a user");
        let (_, database) = rest.split_once('/').expect("a test's URL has a database");
        format!("{before}@{}/{database}?sslmode=disable", self.address)
    }

    /// Cuts the next response that contains a row, to a statement whose text contains `text`. Waits
    /// until that has happened. The proxy watches for it from the first time that the future is
    /// polled.
    ///
    /// # Panics
    ///
    /// If there is no such statement within half a minute.
    pub async fn cut_the_answer_to(&self, text: &str) {
        self.lose(text, Loss::Cut).await;
    }

    /// As [`Self::cut_the_answer_to`], but the connection stays open, and nothing more arrives at
    /// the client until [`Self::release`]. So a network behaves that swallows a connection.
    ///
    /// # Panics
    ///
    /// If there is no such statement within half a minute.
    pub async fn hold_the_answer_to(&self, text: &str) {
        self.lose(text, Loss::Held).await;
    }

    async fn lose(&self, text: &str, loss: Loss) {
        let mut lost = self.plan.lost.subscribe();
        let before = *lost.borrow_and_update();
        *lock(&self.plan.armed) = Some(Wanted { text: text.to_owned(), loss });
        let happened =
            tokio::time::timeout(Duration::from_secs(30), lost.wait_for(|lost| *lost > before))
                .await;
        assert!(happened.is_ok(), "no response with a row to a statement with {text:?} in time");
    }

    /// Forwards all responses that are held back, now and later.
    pub fn release(&self) {
        self.plan.released.send_replace(true);
    }

    /// From now on, forwards new connections.
    pub fn forward_new_connections(&self) {
        *lock(&self.plan.newcomers) = Newcomers::Forwarded;
    }

    /// From now on, closes new connections at once. Existing ones stay.
    pub fn refuse_new_connections(&self) {
        *lock(&self.plan.newcomers) = Newcomers::Refused;
    }

    /// From now on, accepts new connections and never responds on them. Existing ones stay.
    pub fn ignore_new_connections(&self) {
        *lock(&self.plan.newcomers) = Newcomers::Ignored;
    }

    /// The number of connections that were refused.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.plan.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, plan: Arc<Plan>) {
    let mut ignored = Vec::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let newcomers = *lock(&plan.newcomers);
        match newcomers {
            Newcomers::Forwarded => {}
            Newcomers::Refused => {
                plan.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Newcomers::Ignored => {
                ignored.push(client);
                continue;
            }
        }
        let plan = Arc::clone(&plan);
        tokio::spawn(async move {
            // If the server is down, the client's connection is closed.
            let Ok(server) = TcpStream::connect(server).await else { return };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let wanted = Mutex::new(None);
            // When one direction ends, the other ends too, and with it the connection.
            tokio::select! {
                biased;
                _ = answers(from_server, to_client, &plan, &wanted) => {}
                _ = requests(from_client, to_server, &plan, &wanted) => {}
            }
            // If it ends while the statement is in flight, the response to the next matching
            // statement is lost instead.
            let unmet = lock(&wanted).take();
            if let Some(unmet) = unmet {
                lock(&plan.armed).get_or_insert(unmet);
            }
        });
    }
}

/// Forwards messages to the server. When a statement runs whose response is to be lost, that moves
/// from the plan to `wanted`.
async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    plan: &Plan,
    wanted: &Mutex<Option<Wanted>>,
) -> io::Result<()> {
    let mut texts: HashMap<Vec<u8>, String> = HashMap::new();
    // The first message has no letter.
    let length = from.read_u32().await?;
    to.write_u32(length).await?;
    let startup = body(&mut from, length).await?;
    to.write_all(&startup).await?;
    loop {
        let letter = from.read_u8().await?;
        let length = from.read_u32().await?;
        let body = body(&mut from, length).await?;
        let mut strings = body.split(|byte| *byte == 0);
        match letter {
            b'P' => {
                let name = strings.next().unwrap_or_default().to_vec();
                texts.insert(
                    name,
                    String::from_utf8_lossy(strings.next().unwrap_or_default()).into_owned(),
                );
            }
            b'B' => {
                let _portal = strings.next();
                let text = texts.get(strings.next().unwrap_or_default());
                let armed = lock(&plan.armed)
                    .take_if(|armed| text.is_some_and(|text| text.contains(&armed.text)));
                if armed.is_some() {
                    *lock(wanted) = armed;
                }
            }
            _ => {}
        }
        to.write_u8(letter).await?;
        to.write_u32(length).await?;
        to.write_all(&body).await?;
    }
}

/// Forwards messages to the client. A response that may have to be lost is held back until it is
/// complete.
async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    plan: &Plan,
    wanted: &Mutex<Option<Wanted>>,
) -> io::Result<()> {
    let (mut held, mut holds_row) = (Vec::new(), false);
    loop {
        let letter = from.read_u8().await?;
        let length = from.read_u32().await?;
        held.push(letter);
        held.extend(length.to_be_bytes());
        held.extend(body(&mut from, length).await?);
        holds_row |= letter == b'D';
        let is_wanted = lock(wanted).is_some();
        if is_wanted && letter != b'Z' {
            continue;
        }
        let met = lock(wanted).take();
        match met {
            Some(met) if holds_row => {
                let mut released = plan.released.subscribe();
                plan.lost.send_modify(|lost| *lost += 1);
                match met.loss {
                    Loss::Cut => return Ok(()),
                    Loss::Held => {
                        let _ = released.wait_for(|released| *released).await;
                    }
                }
            }
            Some(unmet) => {
                lock(&plan.armed).get_or_insert(unmet);
            }
            None => {}
        }
        to.write_all(&held).await?;
        held.clear();
        holds_row = false;
    }
}

/// The body of a message. `length` includes its own four bytes.
async fn body(from: &mut OwnedReadHalf, length: u32) -> io::Result<Vec<u8>> {
    let mut body = vec![0; usize::try_from(length).unwrap_or_default().saturating_sub(4)];
    from.read_exact(&mut body).await?;
    Ok(body)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
