-- The bytes of the events whose ids are in the JSON array $4: position in the array (from 0), headers, body, and when
-- it was received.
--
-- Bounded by: the primary key of events, one probe for each id. `cross join` fixes that order.
select asked.key as position, event.headers, event.body, event.received_at
from json_each($4) asked
cross join events event on event.id = unhex(asked.value)
