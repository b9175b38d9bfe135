-- Reads the events that an insert found in its way: position in the question (from 1), id, fingerprint, status.
-- A key that is not answered has been deleted since.
--
-- The answer is acknowledged, so it must be as durable as an insert. After a crash of the primary a row can be visible
-- that no standby has yet, and a transaction that only reads waits for no standby. So this one locks a row: its commit
-- then writes to the log, behind the commit of every row that its snapshot sees, and waits for the standby as an insert
-- does. One row is enough, the first that is still there; if all of them are gone, nothing is answered.
--
-- Bounded by: the unique index events_key and the primary key of deliveries, one probe each for each key.
-- The probes are lateral and limited, because joined by the key they may become a scan of a table that the planner
-- believes to be small.
-- Locks: one row of events, for key share. It may wait for a pruning that is deleting that row, and holds no other lock
-- meanwhile. It is a statement of its own, because the insert's snapshot may be older than the row it met.
with held as materialized (
    select event.id
    from unnest($1::text[], $2::text[]) as asked (source, idempotency_key)
    cross join lateral (
        select id from events where source = asked.source and idempotency_key = asked.idempotency_key for key share
    ) as event
    limit 1
)
select asked.position, event.id, event.fingerprint, coalesce(owed.status, 'delivered') as status
from unnest($1::text[], $2::text[]) with ordinality as asked (source, idempotency_key, position)
cross join lateral (
    select id, fingerprint from events where source = asked.source and idempotency_key = asked.idempotency_key limit 1
) as event
left join lateral (select status from deliveries where event_id = event.id limit 1) as owed on true
where exists (select from held)
