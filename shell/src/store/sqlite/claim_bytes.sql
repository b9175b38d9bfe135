-- Reads the events whose ids are in the JSON array $4: position in the array (from 0), query,
-- headers, body, and the time of receipt.
--
-- Bound: one probe for each id. `cross join` fixes that order.
-- Index: the primary key of events.
-- Locks: the database's write lock, which the transaction holds.
select asked.key as position, event.query, event.headers, event.body, event.received_at
from json_each($4) asked
cross join events event on event.id = unhex(asked.value)
