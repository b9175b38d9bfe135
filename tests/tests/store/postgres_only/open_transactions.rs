//! A pooler that begins a transaction before the first statement of a session, and does not end it.
//! Its replies look as if each statement were committed.

use crate::db::{Db, event, source};
use surehook::ports::StoreError;
use surehook::store;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// What the server sends at the end of each reply, outside of a transaction and inside one.
const READY: &[u8] = b"Z\0\0\0\x05I";
const READY_INSIDE: &[u8] = b"Z\0\0\0\x05T";

/// The query `begin`.
const BEGIN: &[u8] = b"Q\0\0\0\x0abegin\0";

#[tokio::test]
async fn a_statement_that_a_pooler_did_not_commit_is_unknown_and_the_next_is_committed() {
    let db = Db::postgres().await;
    let url = through_a_pooler(&db.url).await;

    let store = store::open(&url).unwrap().store();
    let answer = store.pause(source("orders"), true).await;
    assert!(
        matches!(&answer, Err(StoreError::Unknown(why)) if why.contains("pooler")),
        "{answer:?}"
    );
    assert_eq!(db.count("paused_sources").await, 0, "it was not committed");
    assert_eq!(store.pause(source("orders"), true).await, Ok(true));
    assert_eq!(db.count("paused_sources").await, 1);

    let store = store::open(&url).unwrap().store();
    let answer = store.accept(vec![event("a")]).await;
    assert!(matches!(answer, Err(StoreError::Unknown(_))), "the intake checks it too: {answer:?}");
    assert_eq!(store.accept(vec![event("a")]).await.map(|stored| stored.len()), Ok(1));
    assert_eq!(db.count("events").await, 1);
}

/// The URL of a pooler that begins a transaction in each session, unless the client begins one.
async fn through_a_pooler(url: &str) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (user, rest) = url.split_once('@').unwrap();
    let (server, database) = rest.split_once('/').unwrap();
    let (server, through) =
        (server.to_owned(), format!("{user}@127.0.0.1:{port}/{database}?sslmode=disable"));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            tokio::spawn(serve(client, server));
        }
    });
    through
}

async fn serve(mut client: TcpStream, mut server: TcpStream) -> std::io::Result<()> {
    let mut startup = vec![0; 8192];
    let length = client.read(&mut startup).await?;
    server.write_all(&startup[..length]).await?;
    let greeting = until(&mut server, READY).await?;
    // A direct session is known by its startup parameters.
    if startup.windows(16).any(|bytes| bytes == b"surehook.session") {
        server.write_all(BEGIN).await?;
        until(&mut server, READY_INSIDE).await?;
    }
    client.write_all(&greeting).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// Reads until the server has sent this.
async fn until(server: &mut TcpStream, end: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        read.push(server.read_u8().await?);
    }
    Ok(read)
}
