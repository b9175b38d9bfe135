-- Reads the work of the sources that are named in $1, have work, have dead letters or are paused.
-- For each of them it counts the rows of each status: at most $2 rows that are due, $2 that will be
-- due and $2 dead letters that are not discarded, among the newest $3. It also returns how long the
-- oldest has been due, and since when the source is paused.
--
-- Sources with rows are found by stepping from each to the next greater one in both indexes.
--
-- Bound: the number of sources. Each has two range scans, cut by $2, and at most two cut by $3.
-- Index: deliveries_due, deliveries_dead, paused_sources_pkey.
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
    select asked.source from unnest($1::text[]) as asked (source)
    union select source from working
    union select source from with_dead_letters
    union select source from paused_sources
)
select
    named.source,
    waiting.queued,
    waiting.processing,
    waiting.retrying,
    dead.total as dead_lettered,
    greatest(waiting.due, waiting.later) >= $2 or letters.is_cut as is_partial,
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
            select status, due_at, false as is_due
            from deliveries
            where source = named.source and due_at > statement_timestamp()
            order by due_at
            limit $2
        )
    ) as row
) as waiting
cross join lateral (
    select count(*) as total
    from (
        select
        from (
            select fence, discarded_fence
            from deliveries
            where source = named.source and due_at is null
            order by event_id desc
            limit $3
        ) as row
        where discarded_fence is distinct from fence
        limit $2
    ) as kept
) as dead
cross join lateral (
    select case
        when dead.total >= $2 then true
        else (
            select count(*)
            from (select from deliveries where source = named.source and due_at is null order by event_id desc limit $3) as row
        ) >= $3
    end as is_cut
) as letters
left join lateral (select paused_at from paused_sources where source = named.source limit 1) as paused on true
