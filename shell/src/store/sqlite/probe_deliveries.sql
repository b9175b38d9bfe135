-- Deletes the delivery that a probe inserted. $1 is as in accept_events.sql, with one event.
--
-- Bounded by: one probe of deliveries by its key.
delete from deliveries where event_id = unhex(json_extract($1, '$[0][0]'))
