//! The probe on PostgreSQL: whether a new event could be stored now.

use super::events::accepting;
use super::notices::watched;
use super::{PostgresStore, REPLY_TIMEOUT, errors, sql};
use crate::ports::{NewEvent, StoreError};
use tokio::time::timeout;

impl PostgresStore {
    /// Inserts an event with the intake's own statement, rolls it back to a savepoint, and commits.
    ///
    /// The transaction has written to the write-ahead log. So its commit waits for what every
    /// commit waits for: the disk, or a standby. It uses a connection of the intake: if none is
    /// available, no event can be stored either.
    pub(super) async fn insert_and_take_back(&self, event: &NewEvent) -> Result<(), StoreError> {
        let mut connection = self.intake.take().await.map_err(|error| errors::not_taken(&error))?;
        let probe = async {
            connection.begin(sql::PROBE_BEGIN).await?;
            accepting(std::slice::from_ref(event), &[0], &[], &[])
                .persistent(!connection.is_pooled())
                .execute(&mut connection.connection)
                .await?;
            let end = sqlx::raw_sql(sql::PROBE_END).execute(&mut connection.connection);
            let (ended, warned) = watched(end).await;
            ended.map(|_| warned)
        };
        let failure = match timeout(REPLY_TIMEOUT, probe).await {
            Ok(Ok(_)) if connection.is_outdated() => errors::outdated(),
            Ok(Ok(true)) => errors::warned_at_commit(),
            Ok(Ok(false)) => {
                connection.keep();
                return Ok(());
            }
            Ok(Err(error)) => errors::failed(&error),
            Err(_) => errors::no_reply(REPLY_TIMEOUT),
        };
        // The connection is closed, because its transaction may still be open.
        if !failure.usable {
            self.server_is_lost();
        }
        Err(failure.into())
    }
}
