-- Deletes the event that a probe inserted. $1 is the array of accept_events.sql, with one event.
--
-- Bound: one row.
-- Index: the primary key of events.
-- Locks: the database's write lock, which the transaction holds.
delete from events where id = unhex(json_extract($1, '$[0][0]'))
