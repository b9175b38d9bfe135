-- Resumes the source ?1. Changes nothing if it is not paused.
--
-- Bound: one row.
-- Index: the primary key of paused_sources.
-- Locks: the database's write lock, which the transaction holds.
delete from paused_sources where source = ?1
