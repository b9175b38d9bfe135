//! Standbys: a copy of a server that follows it, and replaces it when it is promoted.

use super::{Cluster, Settings, as_server_user, new_data_folder, program, run};

impl Cluster {
    /// Copies this server, and starts the copy as its standby. It accepts read-only sessions.
    /// `name` is its name in `synchronous_standby_names`.
    ///
    /// # Panics
    ///
    /// If the copy cannot be made or does not start.
    #[must_use]
    pub fn standby(&self, name: &str, settings: Settings) -> Self {
        let data = new_data_folder();
        let mut copy = as_server_user(program("pg_basebackup"));
        copy.args([
            "--checkpoint=fast",
            "--wal-method=stream",
            "--no-sync",
            "--write-recovery-conf",
            "--pgdata",
        ])
        .arg(&data);
        let source =
            format!("host=127.0.0.1 port={} user=postgres application_name={name}", self.port);
        run(copy.arg("--dbname").arg(source));
        Self::started(data, settings)
    }

    /// From now on, commits wait until the standby of this name has flushed them to its disk.
    ///
    /// # Panics
    ///
    /// If the server cannot be configured.
    pub async fn commits_wait_for(&self, standby: &str) {
        self.execute(&format!("alter system set synchronous_standby_names = '{standby}'")).await;
        self.execute("select pg_reload_conf()").await;
    }

    /// From now on, commits wait for no standby.
    ///
    /// # Panics
    ///
    /// If the server cannot be configured.
    pub async fn commits_wait_for_none(&self) {
        self.execute("alter system reset synchronous_standby_names").await;
        self.execute("select pg_reload_conf()").await;
    }

    /// Promotes this standby to a primary.
    ///
    /// # Panics
    ///
    /// If it is not a standby, or does not become a primary.
    pub async fn promote(&self) {
        self.execute("do $$ begin if not pg_promote(true, 60) then raise 'it was not promoted in time'; end if; end $$").await;
    }
}
