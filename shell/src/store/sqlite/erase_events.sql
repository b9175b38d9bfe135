-- Erases the headers and bodies of the events whose ids are in the JSON array ?1; ?2 is the time now.
--
-- Bounded by: the primary key of events, one probe for each id.
update events
set headers = x'', body = x'', erased_at = ?2
where id in (select unhex(value) from json_each(?1))
