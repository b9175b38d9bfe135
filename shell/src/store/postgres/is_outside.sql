-- Whether this statement begins its own transaction. Must be sent as a simple query: only then do a
-- transaction and its first statement have the same time.
--
-- Bound: reads nothing.
-- Index: none.
-- Locks: none.
select now() = statement_timestamp() as is_outside
