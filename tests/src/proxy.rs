//! A way to PostgreSQL that can be cut in the moment that matters: it lets one statement reach the server, waits until
//! the server has done and committed it, and breaks the connection instead of passing the answer on.
//!
//! It knows as much of PostgreSQL's protocol as that takes: a message is a letter, a length and a body; `Parse` names a
//! statement, `Bind` runs it, and `ReadyForQuery` says that it is committed.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
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
    /// Cut the answer to the next statement that holds this text.
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
        let task = tokio::spawn(accept(listener, SocketAddr::from(([127, 0, 0, 1], port)), Arc::clone(&plan)));
        Self { address, plan, task }
    }

    /// The URL that leads through this proxy instead of straight to the server. Without TLS, which it could not read.
    #[must_use]
    pub fn through(&self, url: &str) -> String {
        let (before, rest) = url.split_once('@').expect("a test's URL has a user");
        let (_, database) = rest.split_once('/').expect("a test's URL has a database");
        format!("{before}@{}/{database}?sslmode=disable", self.address)
    }

    /// Cuts the answer to the next statement whose text holds `text`, and waits until that has happened.
    ///
    /// # Panics
    ///
    /// If there is no such statement within half a minute.
    pub async fn cut_the_answer_to(&self, text: &str) {
        let mut cut = self.plan.cut.subscribe();
        let before = *cut.borrow_and_update();
        *self.plan.armed.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.to_owned());
        let happened = tokio::time::timeout(Duration::from_secs(30), cut.wait_for(|cut| *cut > before)).await;
        assert!(happened.is_ok(), "no statement with {text:?} came by");
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
            let (swallow, swallowed) = watch::channel(false);
            // Whichever way ends first ends the other, and with it the connection.
            tokio::select! {
                biased;
                _ = answers(from_server, to_client, swallowed, &plan) => {}
                _ = requests(from_client, to_server, &plan, &swallow) => {}
            }
        });
    }
}

/// Passes messages on to the server; says when the answer to one is to be swallowed.
async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, plan: &Plan, swallow: &watch::Sender<bool>) -> io::Result<()> {
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
                texts.insert(name, String::from_utf8_lossy(strings.next().unwrap_or_default()).into_owned());
            }
            b'B' => {
                let _portal = strings.next();
                let text = texts.get(strings.next().unwrap_or_default());
                let mut armed = plan.armed.lock().unwrap_or_else(PoisonError::into_inner);
                if text.zip(armed.as_ref()).is_some_and(|(text, wanted)| text.contains(wanted)) {
                    *armed = None;
                    swallow.send_replace(true);
                }
            }
            _ => {}
        }
        to.write_u8(letter).await?;
        to.write_u32(length).await?;
        to.write_all(&body).await?;
    }
}

/// Passes messages back, until the answer that is swallowed is complete.
async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, swallow: watch::Receiver<bool>, plan: &Plan) -> io::Result<()> {
    loop {
        let letter = from.read_u8().await?;
        let length = from.read_u32().await?;
        let body = body(&mut from, length).await?;
        if *swallow.borrow() {
            if letter == b'Z' {
                plan.cut.send_modify(|cut| *cut += 1);
                return Ok(());
            }
            continue;
        }
        to.write_u8(letter).await?;
        to.write_u32(length).await?;
        to.write_all(&body).await?;
    }
}

/// A message's body; its length counts itself.
async fn body(from: &mut OwnedReadHalf, length: u32) -> io::Result<Vec<u8>> {
    let mut body = vec![0; usize::try_from(length).unwrap_or_default().saturating_sub(4)];
    from.read_exact(&mut body).await?;
    Ok(body)
}
