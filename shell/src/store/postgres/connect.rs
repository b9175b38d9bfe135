//! The settings of this program's sessions.

use super::pooler;
use crate::store::OpenError;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use std::str::FromStr;

/// Settings of each session. They override those of the server, the database and the role. They
/// also follow the URL's own options, and the later value wins.
///
/// Plans: every statement of the store is a bounded set of index probes. With good statistics the
/// planner would choose such a plan, but those of a queue are never good: the table was empty when
/// it was analysed, or full. So plans without index probes are switched off. If the planner
/// overestimates the cost, the JIT compiles for longer than the plan runs. See also [`Plans`].
///
/// Warnings must be sent: one of them says that the wait for a standby was cancelled. See
/// [`super::notices`].
///
/// Keepalives: if the network forgets a connection, its session must end at the server, because the
/// session holds a slot of the pool until then. The server's default takes two hours. These take a
/// minute and a half.
pub(super) const SESSION: [(&str, &str); 16] = [
    ("synchronous_commit", "on"),
    ("client_min_messages", "warning"),
    ("default_transaction_isolation", "read committed"),
    ("statement_timeout", "5s"),
    ("lock_timeout", "2s"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("plan_cache_mode", "force_custom_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("tcp_keepalives_idle", "60"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
];

/// The required form of a URL, for error messages.
pub(super) const FORM: &str =
    "it is not of the form `postgres://user:password@host:port/database?parameter=value`";

/// How the statements of a session are planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plans {
    /// Anew for each execution. The statements of operators and of retention choose an index by
    /// their parameters.
    Custom,
    /// Once, without the parameters. PostgreSQL makes a new plan when it learns new statistics or
    /// the schema changes. The form of the statements of the intake and of the worker leaves no
    /// choice to the planner, and planning them would take longer than a third of their time.
    Generic,
}

impl Plans {
    /// Sets a new session, which was opened with [`options`].
    ///
    /// # Errors
    ///
    /// The server refused, or the connection is lost.
    pub async fn apply(self, session: &mut PgConnection) -> Result<(), sqlx::Error> {
        match self {
            Self::Custom => Ok(()),
            Self::Generic => {
                let set = sqlx::raw_sql("set plan_cache_mode = force_generic_plan");
                set.execute(session).await.map(|_| ())
            }
        }
    }
}

/// The options of the store's direct sessions with one server: those of the URL, and the settings
/// that the store needs.
///
/// # Errors
///
/// [`OpenError`] if the URL cannot be parsed.
pub fn options(url: &str) -> Result<PgConnectOptions, OpenError> {
    Ok(without_settings(url)?.options(pooler::startup()))
}

/// The options of sessions whose settings are made in each transaction. Only the standard startup
/// parameters are sent, because poolers refuse others.
///
/// # Errors
///
/// [`OpenError`] if the URL cannot be parsed.
pub(super) fn without_settings(url: &str) -> Result<PgConnectOptions, OpenError> {
    let options = PgConnectOptions::from_str(url).map_err(|_| OpenError(FORM.into()))?;
    // The driver keeps the brackets of an IPv6 address, and then takes it for a host name.
    let host = options.get_host().trim_matches(['[', ']']).to_owned();
    let options = options.host(&host);
    let options = if options.get_application_name().is_none() {
        options.application_name("surehook")
    } else {
        options
    };
    // The driver would log slow statements whole. The calls are measured and logged elsewhere.
    Ok(options.extra_float_digits(None).disable_statement_logging())
}
