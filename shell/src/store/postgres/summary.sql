-- Groups the failures of events that are not delivered: by source, and by the newest attempt's
-- verdict, status code, error and first 40 bytes of the excerpt. The largest groups come first.
-- Discarded events are looked at, but in no group.
--
-- $1: only this source; null for all. $2: only attempts that ended at this time or later, in
-- microseconds since 1970; null for all. $3: the limit of events looked at in each place. $4: the
-- limit of groups.
--
-- Each row has the sources of which not all events were looked at. Without a group it is one row
-- without an example.
--
-- Sources with rows are found by stepping from each to the next greater one in both indexes.
--
-- Bound: for each source three range scans, each cut by $3, and one probe of attempts for each event
-- looked at.
-- Index: deliveries_due, deliveries_dead, attempts_pkey.
-- Locks: none.
with recursive
working (source) as (
    (select source from deliveries where due_at is not null and source >= '' order by source, due_at limit 1)
    union all
    select next.source
    from working
    cross join lateral (
        select source from deliveries where due_at is not null and source > working.source order by source, due_at limit 1
    ) as next
),
with_dead_letters (source) as (
    (select source from deliveries where due_at is null and source >= '' order by source, event_id limit 1)
    union all
    select next.source
    from with_dead_letters
    cross join lateral (
        select source from deliveries where due_at is null and source > with_dead_letters.source order by source, event_id limit 1
    ) as next
),
named (source) as (
    select source from working where $1::text is null or source = $1
    union
    select source from with_dead_letters where $1::text is null or source = $1
),
looked as materialized (
    select named.source, row.event_id, row.is_dead, row.is_discarded
    from named
    cross join lateral (
        (
            select event_id, true as is_dead, discarded_fence is not distinct from fence as is_discarded
            from deliveries
            where source = named.source and due_at is null
            order by event_id desc
            limit $3
        )
        union
        (
            select event_id, false as is_dead, false as is_discarded
            from deliveries
            where source = named.source and due_at is not null
            order by due_at
            limit $3
        )
        union
        (
            select event_id, false as is_dead, false as is_discarded
            from deliveries
            where source = named.source and due_at is not null
            order by due_at desc
            limit $3
        )
    ) as row
),
partial as (
    select source
    from looked
    group by source
    having count(*) filter (where is_dead) >= $3 or count(*) filter (where not is_dead) >= 2 * $3
),
grouped as materialized (
    select
        looked.source,
        newest.verdict,
        newest.status_code::bigint as status_code,
        newest.error,
        newest.beginning,
        count(*) as events,
        count(*) filter (where looked.is_dead) as dead_lettered,
        (extract(epoch from min(newest.ended_at)) * 1000000)::bigint as first_at,
        (extract(epoch from max(newest.ended_at)) * 1000000)::bigint as last_at,
        -- There is no maximum of ids in all versions. The order of their texts is the same.
        max(looked.event_id::text)::uuid as example
    from looked
    cross join lateral (
        select ended_at, verdict, status_code, error, substring(excerpt from 1 for 40) as beginning
        from attempts
        where event_id = looked.event_id
        order by attempt desc
        limit 1
    ) as newest
    where not looked.is_discarded
        and newest.verdict <> 'delivered'
        and ($2::bigint is null or newest.ended_at >= 'epoch'::timestamptz + $2 * interval '1 microsecond')
    group by looked.source, newest.verdict, newest.status_code, newest.error, newest.beginning
    order by events desc, example desc
    limit $4
)
select
    (select coalesce(array_agg(source), '{}') from partial) as partial,
    grouped.*
from (select 1) as always
left join grouped on true
