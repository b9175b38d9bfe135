//! A way to PostgreSQL that can be cut in the moment that matters: it lets one statement reach the server, waits until
//! the server has done and committed it, and breaks the connection instead of passing the answer on.
//!
//! Only an answer that holds a row is cut: a claim that found nothing due has done nothing that could be lost.
//!
//! It knows as much of PostgreSQL's protocol as that takes: a message is a letter, a length and a body; `Parse` names a
//! statement, `Bind` runs it, `DataRow` is a row of its answer, and `ReadyForQuery` says that it is committed.

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

/// A proxy in front of one server. Gone when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    plan: Arc<Plan>,
    task: JoinHandle<()>,
}

/// What is to be cut, and what was.
#[derive(Debug, Default)]
struct Plan {
    /// Cut the next answer with a row to a statement that holds this text.
    armed: Mutex<Option<String>>,
    cut: watch::Sender<usize>,
}

impl Proxy {
    /// Listens on a free port and passes everything on to the server on `port` of the loopback interface.
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

    /// The URL that leads through this proxy instead of straight to the server. Without TLS, which it could not read.
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

    /// Cuts the next answer that holds a row and is to a statement whose text holds `text`. Waits until that has
    /// happened; it is on the watch from the first time that this is polled.
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
        assert!(happened.is_ok(), "no answer with a row to a statement with {text:?} came by");
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
            // A server that is down refuses the client by the end of its connection.
            let Ok(server) = TcpStream::connect(server).await else { return };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let wanted = Mutex::new(None);
            // Whichever way ends first ends the other, and with it the connection.
            tokio::select! {
                biased;
                _ = answers(from_server, to_client, &plan, &wanted) => {}
                _ = requests(from_client, to_server, &plan, &wanted) => {}
            }
            // If it ends with the statement under way, the next one will do.
            if let Some(text) = lock(&wanted).take() {
                lock(&plan.armed).get_or_insert(text);
            }
        });
    }
}

/// Passes messages on to the server. Where a statement runs whose answer is to be cut, its text goes from the plan into
/// `wanted`.
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

/// Passes messages back. An answer that may have to be cut is held back until it is complete.
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

/// A message's body; its length counts itself.
async fn body(from: &mut OwnedReadHalf, length: u32) -> io::Result<Vec<u8>> {
    let mut body = vec![0; usize::try_from(length).unwrap_or_default().saturating_sub(4)];
    from.read_exact(&mut body).await?;
    Ok(body)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
