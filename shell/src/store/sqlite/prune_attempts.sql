-- Deletes the attempts of the events whose ids are in the JSON array $2.
--
-- Bound: one range scan for each id.
-- Index: the primary key of attempts.
-- Locks: the database's write lock, which the transaction holds.
delete from attempts where event_id in (select unhex(value) from json_each($2))
