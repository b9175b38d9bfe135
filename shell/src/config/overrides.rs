//! The settings that override the file: each top-level setting has a flag and an environment
//! variable. A flag takes precedence over its variable.

use super::{Config, Place, SettingError, values};

/// The top-level settings that a flag or an environment variable can set. They are text, so that
/// errors have the same wording as errors in the file, and so that no parser of flags prints the
/// password of a database.
#[derive(Clone, Default, clap::Args)]
pub struct Overrides {
    /// Address of the HTTP listener, such as `127.0.0.1:8080`
    #[arg(long, value_name = "ADDR", env = "SUREHOOK_LISTEN", hide_env_values = true)]
    pub listen: Option<String>,
    /// Separate address for the operator routes, such as `127.0.0.1:9090`
    #[arg(long, value_name = "ADDR", env = "SUREHOOK_OPERATOR_LISTEN", hide_env_values = true)]
    pub operator_listen: Option<String>,
    /// Host names by which operators reach the listener through a proxy, such as
    /// `surehook.example.com,surehook`
    #[arg(long, value_name = "HOSTS", env = "SUREHOOK_OPERATOR_HOSTS", hide_env_values = true)]
    pub operator_hosts: Option<String>,
    /// Database URL: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`
    ///
    /// Several servers: `HOST:PORT,HOST:PORT`. The one that accepts writes is used. Set passwords
    /// in the environment: other users of the machine can see flags.
    #[arg(long, value_name = "URL", env = "SUREHOOK_DATABASE", hide_env_values = true)]
    pub database: Option<String>,
    /// What this process does: `all`, `intake` or `worker`
    #[arg(long, value_name = "ROLE", env = "SUREHOOK_ROLE", hide_env_values = true)]
    pub role: Option<String>,
    /// Format of log lines: `human` or `json`
    #[arg(long, value_name = "FORMAT", env = "SUREHOOK_LOG", hide_env_values = true)]
    pub log: Option<String>,
    /// How long a shutdown waits for deliveries in flight, such as `30s`
    #[arg(long, value_name = "TIME", env = "SUREHOOK_DRAIN_TIMEOUT", hide_env_values = true)]
    pub drain_timeout: Option<String>,
    /// How long the listener stays open at least after the first signal, such as `10s`
    #[arg(long, value_name = "TIME", env = "SUREHOOK_SHUTDOWN_GRACE", hide_env_values = true)]
    pub shutdown_grace: Option<String>,
    /// Whether to migrate the database schema at start: `true` or `false`
    #[arg(long, value_name = "BOOL", env = "SUREHOOK_MIGRATE_ON_START", hide_env_values = true)]
    pub migrate_on_start: Option<String>,
}

impl Overrides {
    /// Applies the overrides to a configuration and returns their errors.
    pub(super) fn apply(&self, config: &mut Config) -> Vec<SettingError> {
        let Self {
            listen,
            operator_listen,
            operator_hosts,
            database,
            role,
            log,
            drain_timeout,
            shutdown_grace,
            migrate_on_start,
        } = self;
        let results = [
            set(listen.as_ref(), &mut config.listen, values::listen, "--listen", "SUREHOOK_LISTEN"),
            set(
                operator_listen.as_ref(),
                &mut config.operator_listen,
                values::operator_listen,
                "--operator-listen",
                "SUREHOOK_OPERATOR_LISTEN",
            ),
            set(
                operator_hosts.as_ref(),
                &mut config.operator_hosts,
                values::operator_hosts,
                "--operator-hosts",
                "SUREHOOK_OPERATOR_HOSTS",
            ),
            set(
                database.as_ref(),
                &mut config.database,
                values::database,
                "--database",
                "SUREHOOK_DATABASE",
            ),
            set(role.as_ref(), &mut config.role, values::role, "--role", "SUREHOOK_ROLE"),
            set(log.as_ref(), &mut config.log, values::log, "--log", "SUREHOOK_LOG"),
            set(
                drain_timeout.as_ref(),
                &mut config.drain_timeout,
                values::drain_timeout,
                "--drain-timeout",
                "SUREHOOK_DRAIN_TIMEOUT",
            ),
            set(
                shutdown_grace.as_ref(),
                &mut config.shutdown_grace,
                values::shutdown_grace,
                "--shutdown-grace",
                "SUREHOOK_SHUTDOWN_GRACE",
            ),
            set(
                migrate_on_start.as_ref(),
                &mut config.migrate_on_start,
                values::boolean,
                "--migrate-on-start",
                "SUREHOOK_MIGRATE_ON_START",
            ),
        ];
        for (setting, is_overridden) in [
            ("listen", listen.is_some()),
            ("operator_listen", operator_listen.is_some()),
            ("operator_hosts", operator_hosts.is_some()),
            ("database", database.is_some()),
            ("role", role.is_some()),
            ("log", log.is_some()),
            ("drain_timeout", drain_timeout.is_some()),
            ("shutdown_grace", shutdown_grace.is_some()),
        ] {
            if is_overridden {
                config.origins.remove(setting);
            }
        }
        results.into_iter().filter_map(Result::err).collect()
    }
}

fn set<T>(
    given: Option<&String>,
    value: &mut T,
    read: impl FnOnce(&str) -> Result<T, String>,
    flag: &'static str,
    variable: &'static str,
) -> Result<(), SettingError> {
    let Some(text) = given else { return Ok(()) };
    *value = read(text).map_err(|message| SettingError {
        place: Place::Override { flag, variable },
        key: String::new(),
        message,
    })?;
    Ok(())
}
