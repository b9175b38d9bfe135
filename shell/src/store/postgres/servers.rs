//! Chooses the server to connect to among those that a URL names: the current primary, never an old
//! primary.
//!
//! A server that returns after a failover may still consider itself the primary. Its timeline
//! reveals that it is not, because each promotion increases the timeline: a server is used only if
//! no other has reported a higher one. So all servers are queried whenever the used one is lost,
//! and the highest timeline is remembered until the process ends. This is no fence: the system that
//! promotes a standby must keep an old primary from accepting writes.

use super::connect::Plans;
use super::errors::{describe, is_full, is_withheld};
use super::lanes::{self, Lanes};
use super::parameters::{self, Treatment};
use super::pooler::{Entrance, Pooler};
use super::session::Session;
use super::tls::Tls;
use super::{connect, sql};
use crate::store::OpenError;
use crate::store::pool::Connect;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use sqlx::FromRow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Limit of servers in a URL. Each is connected to whenever the one in use is lost.
const MOST_SERVERS: usize = 16;

/// How long the other servers may still answer after one that accepts writes was found. One of them
/// may be its successor.
const GRACE: Duration = Duration::from_millis(300);

/// The servers of one database, in the order in which the URL names them.
#[derive(Debug)]
pub struct Servers {
    servers: Vec<Server>,
    wanted: Wanted,
    /// Parameters of the URL without effect, and why that does no harm.
    ignored: Vec<(String, &'static str)>,
    known: Mutex<Known>,
    /// The connection that queries whether a server still has a session. `None` before the first
    /// query, and after one that failed.
    pub(super) asking: tokio::sync::Mutex<Option<Session>>,
}

#[derive(Debug)]
struct Server {
    /// The server's name in messages, as written in the URL.
    name: String,
    entrance: Entrance,
}

/// Which servers are acceptable. These are values of libpq's `target_session_attrs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// The first that answers. Its state is not queried.
    Any,
    /// A server whose sessions can write.
    ReadWrite,
    /// A server that is not a standby.
    Primary,
}

/// What this process knows about the servers.
#[derive(Debug, Default)]
struct Known {
    /// The server that was used last, unless it has been lost since.
    in_use: Option<usize>,
    lineage: Option<Lineage>,
    /// Increases with each change of the lineage.
    generation: u64,
}

/// A cluster, and the highest timeline that one of its servers has reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lineage {
    system: i64,
    timeline: i64,
}

/// What a server reports about itself, by `standing.sql`.
#[derive(Clone, Copy, Debug, FromRow)]
struct Standing {
    system: i64,
    timeline: i64,
    in_recovery: bool,
    read_only: bool,
}

/// The system and the timeline of a server that does not report them. They are equal for all such
/// servers.
const UNKNOWN: i64 = 0;

/// Servers that answered, each with the reason why it is not used.
type Objections = Vec<(usize, String)>;

struct Answer {
    server: usize,
    connected: Result<(Session, Standing), String>,
}

impl Server {
    async fn open(&self) -> Result<Session, String> {
        self.entrance.open(&self.name).await
    }
}

impl Servers {
    /// Parses a URL with one or more hosts. They are separated by commas, and each can have its own
    /// port.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if the URL cannot be parsed. It never contains a part of the URL that could be
    /// a password.
    pub fn parse(url: &str) -> Result<Self, OpenError> {
        let parts = Parts::of(url)?;
        let hosts: Vec<&str> = parts.hosts.split(',').collect();
        let several = hosts.len() > 1;
        if hosts.len() > MOST_SERVERS {
            return Err(OpenError(format!(
                "it names {} hosts; write at most {MOST_SERVERS}",
                hosts.len()
            )));
        }
        let mut wanted = None;
        let mut pooler = None;
        let mut kept = Vec::new();
        let mut ignored = Vec::new();
        let tls = Tls::given(parts.query, |name| std::env::var_os(name))?;
        ignored.extend(tls.ignored());
        for (name, value) in parameters::of(parts.query) {
            match name {
                "target_session_attrs" if wanted.is_some() => {
                    return Err(OpenError(
                        "`target_session_attrs` is given twice; keep one of them".into(),
                    ));
                }
                "target_session_attrs" => wanted = Some(Wanted::parse(value)?),
                "pooler" => pooler = Some(Pooler::parse(value)?),
                "host" | "hostaddr" | "port"
                    if several
                        || value.contains(',')
                        || value.contains("%2C")
                        || value.contains("%2c") =>
                {
                    return Err(OpenError(format!(
                        "`{name}` cannot name several servers; write them as `//HOST:PORT,HOST:PORT/`"
                    )));
                }
                _ => match parameters::treatment(name, value, tls.verifies_name()) {
                    Treatment::Kept => kept.push(format!("{name}={value}")),
                    Treatment::Tls => {}
                    Treatment::Ignored(why) => ignored.push((name.to_owned(), why)),
                    // The value is not shown, because it may be a password.
                    Treatment::Refused(why) => return Err(OpenError(format!("`{name}`: {why}"))),
                },
            }
        }
        let mut user = parts.user.to_owned();
        if !several && parts.hosts.is_empty() {
            // The driver's parser refuses a user without a host. With libpq, that is the usual way to
            // write a socket's folder.
            let written = std::mem::take(&mut user);
            let (name, password) = credentials(&written);
            kept.extend(name.map(|name| format!("user={name}")));
            kept.extend(password.map(|password| format!("password={password}")));
        }
        let query = |kept: &[String]| {
            if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) }
        };
        let whole = query(&kept);
        kept.retain(|parameter| !parameter.starts_with("options"));
        let without_options = query(&kept);
        let server = |(index, host): (usize, &&str)| {
            let position = index + 1;
            if several && host.is_empty() {
                return Err(OpenError(format!(
                    "host {position} of its {} is empty; write `HOST:PORT` between the commas",
                    hosts.len()
                )));
            }
            let url = |query| format!("{}://{user}{host}{}{query}", parts.scheme, parts.path);
            let entrance = Entrance::new(url(&whole), url(&without_options), pooler, &tls);
            let entrance = entrance.map_err(|error| {
                if several { OpenError(format!("host {position}: {}", error.0)) } else { error }
            })?;
            Ok(Server { name: (*host).to_owned(), entrance })
        };
        let servers = hosts.iter().enumerate().map(server).collect::<Result<_, _>>()?;
        // A single server is used without a check, for example behind a proxy. Of several servers,
        // only the one that accepts writes is useful.
        let wanted = wanted.unwrap_or(if several { Wanted::ReadWrite } else { Wanted::Any });
        Ok(Self {
            servers,
            wanted,
            ignored,
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        })
    }

    /// Logs each parameter of the URL that has no effect.
    pub(super) fn log_ignored(&self) {
        for (parameter, why) in &self.ignored {
            tracing::info!(parameter, why, "parameter of the database URL ignored");
        }
    }

    /// Reports that the server used last is lost, or is read-only now. The next connection queries
    /// all servers.
    pub(super) fn lost(&self) {
        self.known().in_use = None;
        for server in &self.servers {
            server.entrance.forget();
        }
    }

    /// Whether the sessions with one of the servers are pooled. See [`super::pooler`].
    pub(super) fn is_pooled(&self) -> bool {
        self.servers.iter().any(|server| server.entrance.is_pooled())
    }

    /// The current generation. It increases when another server replaces the one in use.
    pub(super) fn generation(&self) -> u64 {
        self.known().generation
    }

    /// Opens a session with the right server by the deadline. Returns it and its generation.
    pub(super) async fn find(&self, deadline: Instant) -> Result<(Session, u64), String> {
        if self.wanted == Wanted::Any && self.servers.len() == 1 {
            let opened = timeout_at(deadline, self.servers[0].open()).await;
            return Ok((opened.map_err(|_| "connecting timed out".to_owned())??, 0));
        }
        let in_use = self.known().in_use;
        if let Some(server) = in_use.filter(|_| self.servers.len() > 1) {
            // If this server does not answer, time must be left for the others.
            let soon = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 3;
            if let Ok(answer) = timeout_at(soon, self.ask(server)).await
                && let Ok(found) = self.choose(vec![answer])
            {
                return Ok(found);
            }
            self.lost();
        }
        self.choose(self.ask_all(deadline).await)
    }

    /// Queries all servers in parallel, so that a silent one does not delay the others.
    async fn ask_all(&self, deadline: Instant) -> Vec<Answer> {
        let mut asked: FuturesUnordered<_> =
            (0..self.servers.len()).map(|server| self.ask(server)).collect();
        let mut answers = Vec::with_capacity(self.servers.len());
        let mut until = deadline;
        while let Ok(Some(answer)) = timeout_at(until, asked.next()).await {
            if answer
                .connected
                .as_ref()
                .is_ok_and(|(_, standing)| self.wanted.objection(*standing).is_none())
            {
                let grace = if self.wanted == Wanted::Any { Duration::ZERO } else { GRACE };
                until = until.min(Instant::now() + grace);
            }
            answers.push(answer);
        }
        answers
    }

    async fn ask(&self, server: usize) -> Answer {
        let connected = async {
            let mut session = self.servers[server].open().await?;
            let standing = if self.wanted == Wanted::Any {
                Standing { system: 0, timeline: 0, in_recovery: false, read_only: false }
            } else {
                standing(&mut session).await.map_err(|error| describe(&error))?
            };
            Ok((session, standing))
        };
        Answer { server, connected: connected.await }
    }

    /// Chooses one of the sessions, and returns it with its generation. The others are closed.
    fn choose(&self, answers: Vec<Answer>) -> Result<(Session, u64), String> {
        let mut known = self.known();
        let mut objections: Vec<String> = vec!["no answer in time".to_owned(); self.servers.len()];
        let mut standings = Vec::new();
        let mut sessions = Vec::new();
        for Answer { server, connected } in answers {
            match connected {
                Ok((session, standing)) => {
                    standings.push((server, standing));
                    sessions.push((server, session));
                }
                Err(error) => objections[server] = error,
            }
        }
        let (chosen, lineage) = judge(self.wanted, known.lineage, &standings);
        if known.lineage != lineage {
            known.lineage = lineage;
            known.generation += 1;
        }
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(judged) => {
                for (server, objection) in judged {
                    objections[server] = objection;
                }
                let told = self
                    .servers
                    .iter()
                    .zip(objections)
                    .map(|(server, objection)| format!("{}: {objection}", server.name));
                return Err(format!(
                    "no server can be used: {}",
                    told.collect::<Vec<_>>().join("; ")
                ));
            }
        };
        if known.in_use != Some(chosen) {
            let server = self.servers[chosen].name.as_str();
            match lineage.map(|lineage| lineage.timeline) {
                Some(UNKNOWN) => tracing::warn!(
                    server,
                    "database server selected; it does not report its timeline, so an old primary is not recognised"
                ),
                timeline => tracing::info!(server, timeline, "database server selected"),
            }
        }
        known.in_use = Some(chosen);
        let session = sessions
            .into_iter()
            .find_map(|(server, session)| (server == chosen).then_some(session));
        Ok((session.ok_or("the chosen server is not connected")?, known.generation))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sessions of one pool.
pub(super) struct Sessions {
    servers: Arc<Servers>,
    plans: Plans,
    lanes: Arc<Lanes>,
}

impl Sessions {
    pub(super) fn new(servers: &Arc<Servers>, plans: Plans, lanes: &Arc<Lanes>) -> Self {
        Self { servers: Arc::clone(servers), plans, lanes: Arc::clone(lanes) }
    }
}

impl Connect for Sessions {
    type Connection = Session;

    async fn connect(&self, deadline: Instant) -> Result<(Session, u64), String> {
        let mut wanting = None;
        let (mut session, generation) = loop {
            match self.servers.find(deadline).await {
                Err(why) if is_full(&why) && Instant::now() + lanes::TRY_EVERY < deadline => {
                    wanting.get_or_insert_with(|| self.lanes.want());
                    self.lanes.give_back_idle(&self.servers);
                    sleep(lanes::TRY_EVERY).await;
                }
                found => break found?,
            }
        };
        let planned = timeout_at(deadline, session.plan(self.plans)).await;
        planned
            .map_err(|_| "connecting timed out".to_owned())?
            .map_err(|error| describe(&error))?;
        Ok((session, generation))
    }

    async fn ping(session: &mut Session) -> bool {
        session.ping().await
    }

    async fn close(session: Session) {
        session.close().await;
    }

    fn end(&self, session: Session, generation: u64) -> Option<BoxFuture<'static, ()>> {
        Some(session.ended(Arc::clone(&self.servers), generation).boxed())
    }

    fn generation(&self) -> u64 {
        self.servers.generation()
    }

    fn is_wanted_elsewhere(&self) -> bool {
        self.lanes.are_wanting()
    }
}

/// Reads what a server reports about itself. Managed databases withhold the functions that read its
/// timeline, or do not have them.
async fn standing(session: &mut Session) -> Result<Standing, sqlx::Error> {
    let whole = match session.read(sqlx::query(sql::STANDING)).await {
        Err(error) if is_withheld(&error) => session.read(sqlx::query(sql::STANDING_ONLY)).await,
        whole => whole,
    };
    whole?.pop().ok_or(sqlx::Error::RowNotFound)
}

/// Decides which of the servers that answered is used, or why none is. Also returns the new
/// lineage.
fn judge(
    wanted: Wanted,
    known: Option<Lineage>,
    standings: &[(usize, Standing)],
) -> (Result<usize, Objections>, Option<Lineage>) {
    let Some((_, first)) = standings.first() else { return (Err(Vec::new()), known) };
    if wanted == Wanted::Any {
        return (Ok(standings[0].0), known);
    }
    let able = standings.iter().filter(|(_, standing)| wanted.objection(*standing).is_none());
    // Reversed, so that the first of equal servers wins. A cluster that replaced the known one has
    // its own timelines, which are not compared with the known one's.
    let rank = |standing: &Standing| {
        (known.is_some_and(|known| known.system == standing.system), standing.timeline)
    };
    let best = able.rev().max_by_key(|(_, standing)| rank(standing));
    let system = best
        .map(|(_, best)| best.system)
        .or(known.map(|known| known.system))
        .unwrap_or(first.system);
    let named = standings
        .iter()
        .filter(|(_, standing)| standing.system == system)
        .map(|(_, standing)| standing.timeline);
    let remembered = known.filter(|known| known.system == system).map(|known| known.timeline);
    let lineage = named.chain(remembered).max().map(|timeline| Lineage { system, timeline });
    match (best, lineage) {
        (Some((server, best)), Some(lineage)) if best.timeline == lineage.timeline => {
            (Ok(*server), Some(lineage))
        }
        _ => {
            let newest = lineage.map_or(0, |lineage| lineage.timeline);
            let objection = |standing: &Standing| {
                wanted.objection(*standing).map_or_else(
                    || format!("refused as an old primary: its timeline is {}, and another server has timeline {newest}", standing.timeline),
                    str::to_owned,
                )
            };
            (
                Err(standings
                    .iter()
                    .map(|(server, standing)| (*server, objection(standing)))
                    .collect()),
                lineage,
            )
        }
    }
}

impl Wanted {
    fn parse(value: &str) -> Result<Self, OpenError> {
        match value {
            "any" => Ok(Self::Any),
            "read-write" => Ok(Self::ReadWrite),
            "primary" => Ok(Self::Primary),
            "read-only" | "standby" | "prefer-standby" => Err(OpenError(format!(
                "`target_session_attrs={value}` selects a read-only server; write `read-write`"
            ))),
            // The value is not shown, because a misplaced part of the URL may be a password.
            _ => Err(OpenError(
                "`target_session_attrs` must be `any`, `read-write` or `primary`".into(),
            )),
        }
    }

    /// Why a server in this state is not acceptable.
    fn objection(self, standing: Standing) -> Option<&'static str> {
        match self {
            Self::ReadWrite | Self::Primary if standing.in_recovery => Some("it is a standby"),
            Self::ReadWrite if standing.read_only => Some("it is set to read-only"),
            Self::Any | Self::ReadWrite | Self::Primary => None,
        }
    }
}

/// A URL, split only as far as needed to build one for each of its hosts.
struct Parts<'a> {
    scheme: &'a str,
    /// Includes the `@`. Empty if there is no user.
    user: &'a str,
    hosts: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Result<Self, OpenError> {
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| OpenError(connect::FORM.into()))?;
        let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        // Such a URL could be parsed with a part of the password as the name of a database or a
        // parameter, and that name would be shown.
        if rest.contains('@') {
            return Err(OpenError(
                "it has an `@` after its host; write `@ / ? #` in a password as `%40 %2F %3F %23`"
                    .into(),
            ));
        }
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        Ok(Self { scheme, user, hosts, path, query })
    }
}

/// The user and the password of the part of a URL before its host, as values of parameters. In a
/// query a `+` would be a space.
fn credentials(user: &str) -> (Option<String>, Option<String>) {
    let user = user.trim_end_matches('@');
    let (name, password) =
        user.split_once(':').map_or((user, None), |(name, password)| (name, Some(password)));
    let value = |text: &str| text.replace('+', "%2B").replace('&', "%26");
    ((!name.is_empty()).then(|| value(name)), password.map(value))
}

/// A URL for display: without its password, and without parameters except `target_session_attrs`.
/// `None` if the URL cannot be parsed.
#[must_use]
pub fn shown(url: &str) -> Option<String> {
    let Parts { scheme, user, hosts, path, query } = Parts::of(url).ok()?;
    let name = user.trim_end_matches('@').split_once(':').map_or(user, |(name, _)| name);
    let at = if name.is_empty() || name.ends_with('@') { "" } else { "@" };
    let wanted = query.split('&').find(|parameter| parameter.starts_with("target_session_attrs="));
    let wanted = wanted.filter(|parameter| {
        parameter.split_once('=').is_some_and(|(_, value)| Wanted::parse(value).is_ok())
    });
    let query = wanted.map_or(String::new(), |wanted| format!("?{wanted}"));
    Some(format!("{scheme}://{name}{at}{hosts}{path}{query}"))
}

#[cfg(test)]
#[path = "servers/tests.rs"]
mod tests;
