-- Reads the number of the newest recorded attempt of the event ?1. Null if there is none.
--
-- Bound: one row, from the end of the event's range.
-- Index: the primary key of attempts.
-- Locks: the database's write lock, which the transaction holds.
select max(attempt) as attempt from attempts where event_id = ?1
