-- The number of the newest attempt that is recorded of the event ?1; null if none is.
--
-- Bounded by: the primary key of attempts, read from its end.
select max(attempt) as attempt from attempts where event_id = ?1
