-- Reads the events that are there already under the keys of a batch: position in the question (from 0), id,
-- fingerprint, status. Inside the transaction that then inserts the others.
--
-- Bounded by: the unique index on (source, idempotency_key) and the primary key of deliveries, one probe each for
-- each key. `cross join` fixes that order.
select asked.key as position, event.id, event.fingerprint, coalesce(owed.status, 'delivered') as status
from json_each(?1) asked
cross join events event on event.source = asked.value ->> 0 and event.idempotency_key = asked.value ->> 1
left join deliveries owed on owed.event_id = event.id
