-- Deletes the attempts of the events whose ids are in the JSON array ?1.
--
-- Bounded by: the primary key of attempts, one range for each id.
delete from attempts where event_id in (select unhex(value) from json_each(?1))
