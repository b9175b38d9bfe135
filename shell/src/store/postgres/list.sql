-- Reads a page of the events that match a filter, newest first, each with its newest attempt.
--
-- $1: the path. $2 to $6: the filter (source, key, status, reason, status code; null matches all).
-- $7 and $8: the span (from, until). $9: the limit of events shown. $10: the limit of events looked
-- at.
--
-- Each row has the number of events looked at, and the last of them. A page without events is one
-- row without an id. It is one statement with one snapshot, so an event without a row in deliveries
-- is delivered.
--
-- A key without a source is looked up in each source that has events. These are found by stepping
-- from each source to the next greater one.
--
-- Bound: one range scan, cut by $10; for a key one probe, or without a source two for each source.
-- For each event looked at, one probe of each table that the filter needs. For each event shown, one
-- probe of each table.
-- Index: for the scan events_key, deliveries_dead, deliveries_pkey or events_pkey, by the path. The
-- scans of the other paths have a one-time filter that is false. For the probes events_pkey,
-- deliveries_pkey and attempts_pkey.
-- Locks: none.
with recursive
stored (source) as (
    (
        select source from events
        where $1 = 'key' and $2::text is null and source >= ''
        order by source, idempotency_key
        limit 1
    )
    union all
    select next.source
    from stored
    cross join lateral (
        select source from events where source > stored.source order by source, idempotency_key limit 1
    ) as next
),
keyed (source) as (
    select $2::text where $1 = 'key' and $2 is not null
    union all
    select source from stored
),
looked as materialized (
    (
        select event.id, event.source, null as status, null as reason
        from keyed
        cross join lateral (
            select id, source from events where source = keyed.source and idempotency_key = $3 limit 1
        ) as event
        where event.id >= $7 and event.id < $8
        order by event.id desc
        limit $10
    )
    union all
    (
        select event_id, source, status, case when discarded_fence = fence then 'discarded' else reason end as reason
        from deliveries
        where $1 = 'dead_letters' and source = $2 and due_at is null and event_id >= $7 and event_id < $8
        order by event_id desc
        limit $10
    )
    union all
    (
        select event_id, source, status, case when discarded_fence = fence then 'discarded' else reason end as reason
        from deliveries
        where $1 = 'owed' and event_id >= $7 and event_id < $8
        order by event_id desc
        limit $10
    )
    union all
    (
        select id, source, null, null
        from events
        where $1 = 'events' and id >= $7 and id < $8
        order by id desc
        limit $10
    )
),
matching as materialized (
    select looked.id
    from looked
    left join lateral (
        select idempotency_key from events where id = looked.id limit 1
    ) as event on $3 is not null
    left join lateral (
        select status, case when discarded_fence = fence then 'discarded' else reason end as reason from deliveries where event_id = looked.id limit 1
    ) as owed on looked.status is null and ($4 is not null or $5 is not null)
    left join lateral (
        select status_code from attempts where event_id = looked.id order by attempt desc limit 1
    ) as tried on $6 is not null
    where ($2 is null or looked.source = $2)
        and ($3 is null or event.idempotency_key = $3)
        and ($4 is null or coalesce(looked.status, owed.status, 'delivered') = $4)
        and ($5 is null or coalesce(looked.reason, owed.reason) = $5)
        and ($6 is null or tried.status_code = $6)
    order by looked.id desc
    limit $9
),
page as materialized (
    select
        matching.id,
        event.source,
        event.idempotency_key,
        (extract(epoch from event.received_at) * 1000000)::bigint as received_at,
        owed.status,
        owed.attempt,
        owed.budget_from,
        (extract(epoch from owed.due_at) * 1000000)::bigint as due_at,
        (extract(epoch from owed.ended_at) * 1000000)::bigint as ended_at,
        owed.reason,
        tried.attempt as tried_attempt,
        (extract(epoch from tried.ended_at) * 1000000)::bigint as tried_ended_at,
        tried.took_us as tried_took_us,
        tried.verdict as tried_verdict,
        tried.status_code::bigint as tried_status_code,
        tried.error as tried_error,
        tried.excerpt as tried_excerpt
    from matching
    cross join lateral (select source, idempotency_key, received_at from events where id = matching.id limit 1) as event
    left join lateral (
        select status, attempt, budget_from, due_at, ended_at, case when discarded_fence = fence then 'discarded' else reason end as reason
        from deliveries
        where event_id = matching.id
        limit 1
    ) as owed on true
    left join lateral (
        select attempt, ended_at, took_us, verdict, status_code, error, excerpt
        from attempts
        where event_id = matching.id
        order by attempt desc
        limit 1
    ) as tried on true
)
select
    (select count(*) from looked) as looked,
    (select id from looked order by id limit 1) as last,
    page.*
from (select 1) as always
left join page on true
order by page.id desc
