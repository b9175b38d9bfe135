-- Begins the transaction of a probe, in which accept.sql inserts one event that nobody is to see.
--
-- Bounded by: nothing is read. Locks: nothing.
begin;
savepoint probe
