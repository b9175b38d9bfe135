-- Rolls back what a probe inserted, and commits. The insert has written to the write-ahead log. So
-- the commit is as durable as that of an event, and waits for a standby if other commits do. The
-- rollback needs no privilege to delete.
--
-- Bound: one event.
-- Index: none.
-- Locks: only those that accept.sql took.
rollback to savepoint probe;
commit
