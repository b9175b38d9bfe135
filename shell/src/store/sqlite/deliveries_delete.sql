-- Deletes the rows of the events whose ids are in the JSON array ?1.
--
-- Bounded by: the primary key of deliveries, one probe for each id.
delete from deliveries where event_id in (select unhex(value) from json_each(?1))
