-- The work of the sources that are named ($1), have work, have dead letters or are paused: how many rows of each status,
-- of at most $2 that are due, $2 that will be and $2 that are dead, and for how long the first has been due.
--
-- Bounded by: the number of sources, each with three ranges of deliveries_due and deliveries_dead, cut by $2. The sources
-- that have rows are found by going from each to the next greater one in those indexes.
-- Locks: nothing.
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
mourning (source) as (
    (select source from deliveries where due_at is null and source >= '' order by source, event_id limit 1)
    union all
    select next.source
    from mourning
    cross join lateral (
        select source from deliveries where due_at is null and source > mourning.source order by source, event_id limit 1
    ) as next
),
named (source) as (
    select unnest($1::text[])
    union select source from working
    union select source from mourning
    union select source from paused_sources
)
select
    named.source,
    waiting.queued,
    waiting.processing,
    waiting.retrying,
    dead.total as dead_lettered,
    greatest(waiting.due, waiting.later, dead.total) >= $2 as is_partial,
    (extract(epoch from statement_timestamp() - waiting.due_since) * 1000000)::bigint as behind_us,
    (extract(epoch from paused.paused_at) * 1000000)::bigint as paused_at
from named
cross join lateral (
    select
        count(*) filter (where is_due) as due,
        count(*) filter (where not is_due) as later,
        count(*) filter (where status = 'queued') as queued,
        count(*) filter (where status = 'processing') as processing,
        count(*) filter (where status = 'retrying') as retrying,
        min(due_at) filter (where is_due) as due_since
    from (
        (
            select status, due_at, true as is_due
            from deliveries
            where source = named.source and due_at <= statement_timestamp()
            order by due_at
            limit $2
        )
        union all
        (
            select status, due_at, false
            from deliveries
            where source = named.source and due_at > statement_timestamp()
            order by due_at
            limit $2
        )
    ) as row
) as waiting
cross join lateral (
    select count(*) as total
    from (select from deliveries where source = named.source and due_at is null order by event_id limit $2) as row
) as dead
left join lateral (select paused_at from paused_sources where source = named.source limit 1) as paused on true
