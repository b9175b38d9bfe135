-- Deletes the events whose ids are in the JSON array $2.
--
-- Bound: one probe for each id.
-- Index: the primary key of events.
-- Locks: the database's write lock, which the transaction holds.
delete from events where id in (select unhex(value) from json_each($2))
