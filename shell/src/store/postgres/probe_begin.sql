-- Begins the part of a probe's transaction in which accept.sql inserts one event. The event never
-- becomes visible.
--
-- Bound: reads nothing.
-- Index: none.
-- Locks: none.
savepoint probe
