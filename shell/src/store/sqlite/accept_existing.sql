-- Reads the stored events that have the keys of a batch: position in the batch (from 0), id,
-- fingerprint, status. It runs in the transaction that then inserts the others.
--
-- Bound: one probe of each index for each key. `cross join` fixes that order.
-- Index: the unique index on (source, idempotency_key), and the primary key of deliveries.
-- Locks: the database's write lock, which the transaction holds.
select asked.key as position, event.id, event.fingerprint, coalesce(owed.status, 'delivered') as status
from jsonb_each(?1) asked
cross join events event on event.source = asked.value ->> 0 and event.idempotency_key = asked.value ->> 1
left join deliveries owed on owed.event_id = event.id
