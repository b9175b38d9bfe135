-- Caps up to $4 due times that are beyond the horizon of their source: each row is due when a lease
-- has passed. $1 has the sources, $2 their horizons and $3 their leases, in microseconds. Returns
-- the number of capped rows.
--
-- The fence stays, so the holder of a row can still settle it. A row that was changed since this
-- statement began is locked, and its due time examined again, in its newest version.
--
-- Bound: for each source one range scan, and $4 rows in total, because the outer limit stops the
-- scans. Usually no row is beyond a horizon.
-- Index: deliveries_due, deliveries_pkey.
-- Locks: the capped rows of deliveries, source by source in the order of their due times, skipping
-- locked rows. So it never waits, and cannot deadlock.
with
bound as materialized (
    select source, horizon_us, lease_us
    from unnest($1::text[], $2::bigint[], $3::bigint[]) as bound (source, horizon_us, lease_us)
),
beyond as materialized (
    select row.*, statement_timestamp() + bound.lease_us * interval '1 microsecond' as leased_until
    from bound
    cross join lateral (
        select event_id, source, status, attempt, budget_from, fence
        from deliveries
        where source = bound.source and due_at > statement_timestamp() + bound.horizon_us * interval '1 microsecond'
        order by due_at
        limit $4
        for update skip locked
    ) as row
    limit $4
),
capped as (
    insert into deliveries as row (event_id, source, status, attempt, budget_from, fence, due_at)
    select event_id, source, status, attempt, budget_from, fence, leased_until
    from beyond
    on conflict (event_id) do update
    set due_at = excluded.due_at
    returning event_id
)
select count(*) as capped from capped
