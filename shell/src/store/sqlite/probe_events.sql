-- Deletes the event that a probe inserted. $1 is as in accept_events.sql, with one event.
--
-- Bounded by: one probe of events by its id.
delete from events where id = unhex(json_extract($1, '$[0][0]'))
