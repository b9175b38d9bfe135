//! A proxy to PostgreSQL that can cut a connection at the critical moment. It forwards one
//! statement to the server, waits until the server has executed and committed it, and closes the
//! connection instead of forwarding the response.
//!
//! Only a response with a row is cut: a claim that found nothing due has done nothing that could be
//! lost.
//!
//! It knows the necessary part of PostgreSQL's protocol: a message is a letter, a length and a
//! body. `Parse` names a statement, `Bind` runs it, `DataRow` is a row of its response, and
//! `ReadyForQuery` means that it is committed.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
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

/// The response to cut, and the number of cuts so far.
#[derive(Debug, Default)]
struct Plan {
    /// Cut the next response with a row to a statement that contains this text.
    armed: Mutex<Option<String>>,
    cut: watch::Sender<usize>,
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
        let mut cut = self.plan.cut.subscribe();
        let before = *cut.borrow_and_update();
        *lock(&self.plan.armed) = Some(text.to_owned());
        let happened =
            tokio::time::timeout(Duration::from_secs(30), cut.wait_for(|cut| *cut > before)).await;
        assert!(happened.is_ok(), "no response with a row to a statement with {text:?} in time");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, plan: Arc<Plan>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
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
            // If it ends while the statement is in flight, the next matching statement is cut
            // instead.
            if let Some(text) = lock(&wanted).take() {
                lock(&plan.armed).get_or_insert(text);
            }
        });
    }
}

/// Forwards messages to the server. When a statement runs whose response is to be cut, its text
/// moves from the plan to `wanted`.
async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    plan: &Plan,
    wanted: &Mutex<Option<String>>,
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
                    .take_if(|armed| text.is_some_and(|text| text.contains(armed.as_str())));
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

/// Forwards messages to the client. A response that may have to be cut is held back until it is
/// complete.
async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    plan: &Plan,
    wanted: &Mutex<Option<String>>,
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
        if is_wanted && holds_row {
            *lock(wanted) = None;
            plan.cut.send_modify(|cut| *cut += 1);
            return Ok(());
        }
        if let Some(text) = lock(wanted).take() {
            lock(&plan.armed).get_or_insert(text);
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
