-- Deletes the delivery that a probe inserted. $1 is the array of accept_events.sql, with one event.
--
-- Bound: one row.
-- Index: the primary key of deliveries.
-- Locks: the database's write lock, which the transaction holds.
delete from deliveries where event_id = unhex(json_extract($1, '$[0][0]'))
