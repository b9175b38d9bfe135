//! The probe on PostgreSQL: whether a new event could be stored now.

use super::{PostgresStore, REPLY_TIMEOUT, accepting, errors, sql};
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
            sqlx::raw_sql(sql::PROBE_BEGIN).execute(&mut connection.connection).await?;
            accepting(std::slice::from_ref(event), &[0], &[], &[])
                .execute(&mut connection.connection)
                .await?;
            sqlx::raw_sql(sql::PROBE_END).execute(&mut connection.connection).await
        };
        // After a failure the connection is closed, because its transaction may still be open.
        match timeout(REPLY_TIMEOUT, probe).await {
            Ok(Ok(_)) if connection.is_outdated() => Err(errors::outdated().into()),
            Ok(Ok(_)) => {
                connection.keep();
                Ok(())
            }
            Ok(Err(error)) => Err(errors::failed(&error).into()),
            Err(_) => Err(errors::no_reply(REPLY_TIMEOUT).into()),
        }
    }
}
