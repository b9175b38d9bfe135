-- Deletes the events whose ids are in the JSON array ?1.
--
-- Bounded by: the primary key of events, one probe for each id.
delete from events where id in (select unhex(value) from json_each(?1))
