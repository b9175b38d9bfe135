-- Reads the stored events that an insert conflicted with: position in the parameters (from 1), id,
-- fingerprint, status. A key without a result row has been deleted since.
--
-- The result is acknowledged, so it must be as durable as an insert. After a crash of the primary,
-- a row can be visible that no standby has yet, and a transaction that only reads does not wait for
-- a standby. So this statement locks one row. Its commit then writes to the write-ahead log, after
-- the commit of every row that its snapshot sees, and waits for the standby as an insert does. One
-- row is enough, the first that still exists. If none exists, nothing is returned.
--
-- It is a separate statement, because the insert's snapshot may be older than the row that it
-- conflicted with. The probes are lateral and limited, because the planner could turn joins by the
-- key into a scan of a table that it believes to be small.
--
-- Bound: at most two probes of events and one of deliveries for each key.
-- Index: events_key, deliveries_pkey.
-- Locks: one row of events, for key share. It may wait for a prune that deletes this row, and holds
-- no other lock while it waits.
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
