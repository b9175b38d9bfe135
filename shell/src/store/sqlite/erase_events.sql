-- Erases the queries, headers and bodies of the events whose ids are in the JSON array ?1. ?2 is
-- the current time.
--
-- Bound: one probe for each id.
-- Index: the primary key of events.
-- Locks: the database's write lock, which the transaction holds.
update events
set query = x'', headers = x'', body = x'', erased_at = ?2
where id in (select unhex(value) from json_each(?1))
