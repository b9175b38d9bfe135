-- Takes back what a probe inserted, and commits. The insert has written to the log, so the commit is as durable as that of
-- an event, and waits for a standby if others do. It needs no privilege to delete.
--
-- Bounded by: one event. Locks: nothing beyond what accept.sql locked.
rollback to savepoint probe;
commit
