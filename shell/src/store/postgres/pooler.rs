//! Poolers between this program and the server, such as PgBouncer.
//!
//! A pooler in transaction mode gives each transaction another session of the server. So nothing may
//! be set for a session, and no prepared statement may outlive its transaction. A *pooled* session
//! therefore runs each call in a transaction that begins with all settings, and prepares each
//! statement anew without a name. A *direct* session is set once, by its startup parameters, and
//! keeps its prepared statements. That is faster, and works only if the session belongs to this
//! program.
//!
//! Which of the two it is, is found out at connecting. A direct session is tried first. A pooler
//! refuses its startup parameters, or ignores them: then the setting [`MARK`] is missing. The URL's
//! parameter `pooler` decides it instead.
//!
//! A third kind of pooler begins a transaction before a statement and does not end it (Pgpool, with
//! `insert_lock` in raw mode). Its replies look as if the statement were committed. So sessions check
//! this, see [`Session::run`], and after the first such reply every session is pooled: that pooler
//! leaves transactions alone that the client begins.

use super::connect::{self, SESSION};
use super::errors::{describe, is_password_refused, is_startup_parameter_refused};
use super::session::Session;
use super::tls::Tls;
use crate::store::OpenError;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A setting that only a direct session has. Its startup parameters set it to [`DIRECT`].
pub(super) const MARK: &str = "surehook.session";
pub(super) const DIRECT: &str = "direct";

/// The value of the URL's parameter `pooler`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pooler {
    /// There is none: every session is direct.
    None,
    /// One in transaction mode: every session is pooled.
    Transaction,
}

impl Pooler {
    /// # Errors
    ///
    /// [`OpenError`] if there is no such value.
    pub(super) fn parse(value: &str) -> Result<Self, OpenError> {
        match value {
            "none" => Ok(Self::None),
            "transaction" => Ok(Self::Transaction),
            _ => Err(OpenError("`pooler` must be `none` or `transaction`".into())),
        }
    }
}

/// How to open sessions at one server, or at the pooler before it.
#[derive(Debug)]
pub(super) struct Entrance {
    urls: Urls,
    options: Mutex<Arc<Options>>,
    tls: Tls,
    /// Begins the transactions of pooled sessions.
    begin: Arc<str>,
    pooler: Option<Pooler>,
    /// Whether the last session was pooled. The next one is then not tried directly first.
    is_pooled: AtomicBool,
    /// Whether a direct session was inside a transaction that this program did not begin.
    keeps_open: Arc<AtomicBool>,
}

/// URLs of one server.
#[derive(Debug)]
struct Urls {
    whole: String,
    /// Without its own settings of sessions.
    without_options: String,
}

/// What sessions are opened with. A password that the URLs do not have was read from the file of
/// passwords (`PGPASSFILE`) when they were parsed.
#[derive(Debug)]
struct Options {
    direct: PgConnectOptions,
    pooled: PgConnectOptions,
}

impl Urls {
    fn parse(&self, tls: &Tls) -> Result<(Tls, Options), OpenError> {
        let (tls, direct) = tls.for_server(connect::options(&self.whole)?)?;
        let (_, pooled) = tls.for_server(connect::without_settings(&self.without_options)?)?;
        Ok((tls, Options { direct, pooled }))
    }
}

impl Entrance {
    /// `url` names one server. `url_without_options` is the same without its own session settings.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if a URL cannot be parsed.
    pub(super) fn new(
        url: String,
        url_without_options: String,
        pooler: Option<Pooler>,
        tls: &Tls,
    ) -> Result<Self, OpenError> {
        let urls = Urls { whole: url, without_options: url_without_options };
        let (tls, options) = urls.parse(tls)?;
        let begin = begin(options.direct.get_options().unwrap_or_default())?;
        Ok(Self {
            urls,
            options: Mutex::new(Arc::new(options)),
            tls,
            begin: begin.into(),
            pooler,
            is_pooled: AtomicBool::new(pooler == Some(Pooler::Transaction)),
            keeps_open: Arc::default(),
        })
    }

    /// Whether the last session that was opened here was pooled.
    pub(super) fn is_pooled(&self) -> bool {
        self.is_pooled.load(Ordering::Relaxed) || self.keeps_open.load(Ordering::Relaxed)
    }

    /// Finds out anew what is there.
    pub(super) fn forget(&self) {
        self.is_pooled.store(self.pooler == Some(Pooler::Transaction), Ordering::Relaxed);
    }

    /// Opens a session. `server` names it in the log. If the password is refused, the file of
    /// passwords is read again, because it may have been changed.
    ///
    /// # Errors
    ///
    /// The reason why none can be opened.
    pub(super) async fn open(&self, server: &str) -> Result<Session, String> {
        let options = self.options();
        match self.open_with(&options, server).await {
            Err(why) if is_password_refused(&why) => {
                // The URLs could be parsed before. Only a file can have become unusable.
                let (_, options) = self.urls.parse(&self.tls).map_err(|error| error.0)?;
                let options = Arc::new(options);
                *self.options.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&options);
                self.open_with(&options, server).await
            }
            opened => opened,
        }
    }

    fn options(&self) -> Arc<Options> {
        Arc::clone(&self.options.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn open_with(&self, options: &Options, server: &str) -> Result<Session, String> {
        let Options { direct, pooled } = options;
        if !self.is_pooled() {
            match self.tls.connect(direct).await? {
                Ok(connection) => {
                    if let Some(session) = self.directly(connection).await? {
                        return Ok(session);
                    }
                }
                Err(error) if self.may_be_pooled() && is_startup_parameter_refused(&error) => {}
                Err(error) => return Err(self.tls.describe(direct.get_host(), &error)),
            }
        }
        let connected = self.tls.connect(pooled).await?;
        let connection = connected.map_err(|error| self.tls.describe(pooled.get_host(), &error))?;
        if !self.is_pooled.swap(true, Ordering::Relaxed) {
            tracing::info!(
                server,
                "database reached through a pooler; every call is a transaction of several statements"
            );
        }
        Ok(Session::pooled(connection, Arc::clone(&self.begin)))
    }

    fn may_be_pooled(&self) -> bool {
        self.pooler != Some(Pooler::None)
    }

    /// A session on this connection. `None` if something ignored its startup parameters.
    async fn directly(&self, connection: PgConnection) -> Result<Option<Session>, String> {
        match Session::direct(connection, Arc::clone(&self.keeps_open)).await {
            Ok(None) if !self.may_be_pooled() => Err(
                "the settings of the session are ignored, so there is a pooler; remove `pooler=none` from the database URL"
                    .into(),
            ),
            Ok(session) => Ok(session),
            Err(error) => Err(describe(&error)),
        }
    }
}

/// The statements that begin a transaction of a pooled session: all settings hold for this
/// transaction only. The last of them also returns what identifies it, see
/// [`super::session::Identity`].
fn begin(options: &str) -> Result<String, OpenError> {
    let mut text = "begin isolation level read committed; select ".to_owned();
    for (name, value) in settings(options)? {
        // They belong to the connection between the pooler and the server.
        if name.starts_with("tcp_keepalives") || name == MARK {
            continue;
        }
        let _ = write!(text, "set_config({}, {}, true), ", literal(&name), literal(&value));
    }
    text.push_str(
        "pg_backend_pid()::bigint as pid, (extract(epoch from now()) * 1000000)::bigint as started",
    );
    Ok(text)
}

/// The settings of the startup parameter `options`, in their order: `-c name=value` or
/// `--name=value`, separated by spaces. A backslash precedes a space or a backslash that belongs to
/// a value. The rules are those of PostgreSQL (`pg_split_opts` and `process_postgres_switches`).
fn settings(options: &str) -> Result<Vec<(String, String)>, OpenError> {
    let mut words = words(options).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--") {
            Some(setting) => Some(setting.to_owned()),
            None => match word.strip_prefix("-c") {
                Some("") => words.next(),
                Some(setting) => Some(setting.to_owned()),
                None => None,
            },
        };
        let Some((name, value)) = setting.as_deref().and_then(|setting| setting.split_once('='))
        else {
            // The word is not shown, because it may be a secret.
            return Err(OpenError(
                "`options` must consist of settings of the form `-c name=value`".into(),
            ));
        };
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

fn words(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        if character.is_ascii_whitespace() {
            words.extend(word.take());
            continue;
        }
        let character =
            if character == '\\' { characters.next().unwrap_or('\\') } else { character };
        word.get_or_insert_default().push(character);
    }
    words.extend(word);
    words
}

/// A literal of SQL. It has the same meaning whatever `standard_conforming_strings` is.
fn literal(text: &str) -> String {
    let escaped = text.replace('\\', r"\\").replace('\'', "''");
    if text.contains('\\') { format!(" E'{escaped}'") } else { format!("'{escaped}'") }
}

/// The settings of every session, and the mark of a direct one.
pub(super) fn startup() -> impl Iterator<Item = (&'static str, &'static str)> {
    SESSION.into_iter().chain([(MARK, DIRECT)])
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Entrance {
        /// The options of direct sessions.
        pub(in super::super) fn direct(&self) -> PgConnectOptions {
            self.options().direct.clone()
        }
    }

    fn pairs(options: &str) -> Vec<(String, String)> {
        settings(options).unwrap()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.into(), value.into())
    }

    #[test]
    fn startup_options_are_split_as_postgresql_splits_them() {
        assert_eq!(pairs(""), []);
        assert_eq!(
            pairs(r"-c search_path=hooks  -cgeqo=off --work-mem=8MB -c x=a\ b\\c"),
            [
                pair("search_path", "hooks"),
                pair("geqo", "off"),
                pair("work_mem", "8MB"),
                pair("x", r"a b\c")
            ]
        );
        for malformed in ["-c", "-c x", "search_path=hooks", "-d 5"] {
            let error = settings(malformed).unwrap_err();
            assert!(error.to_string().contains("-c name=value"), "{malformed}: {error}");
        }
    }

    #[test]
    fn a_transaction_begins_with_every_setting_and_the_urls_before_them() {
        let options =
            connect::options("postgres://a/b?options=-c%20search_path%3Do%27x%2C%5C%5Cy").unwrap();
        let begin = begin(options.get_options().unwrap()).unwrap();
        assert!(begin.starts_with(
            r"begin isolation level read committed; select set_config('search_path',  E'o''x,\\y', true), "
        ), "{begin}");
        for (name, value) in SESSION {
            let set = format!("set_config('{name}', '{value}', true)");
            assert_eq!(begin.contains(&set), !name.starts_with("tcp_"), "{set} in {begin}");
        }
        assert!(!begin.contains(MARK), "only a direct session has it: {begin}");
    }
}
