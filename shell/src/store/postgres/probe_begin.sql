-- Begins the transaction of a probe. accept.sql then inserts one event in it, which never becomes
-- visible.
--
-- Bound: reads nothing.
-- Index: none.
-- Locks: none.
begin;
savepoint probe
