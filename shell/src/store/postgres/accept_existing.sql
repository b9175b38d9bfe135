-- Reads the events that an insert found in its way: position in the question (from 1), id, fingerprint, status.
-- A key that is not answered has been deleted since.
--
-- Bounded by: the unique index events_key and the primary key of deliveries, one probe each for each key.
-- The probes are lateral and limited, because joined by the key they may become a scan of a table that the planner
-- believes to be small.
-- Locks: nothing. It is a statement of its own, because the insert's snapshot may be older than the row it met.
select asked.position, event.id, event.fingerprint, coalesce(owed.status, 'delivered') as status
from unnest($1::text[], $2::text[]) with ordinality as asked (source, idempotency_key, position)
cross join lateral (
    select id, fingerprint from events where source = asked.source and idempotency_key = asked.idempotency_key limit 1
) as event
left join lateral (select status from deliveries where event_id = event.id limit 1) as owed on true
