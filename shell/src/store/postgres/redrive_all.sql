-- Queues the dead letters that match a filter again with a new retry budget, in the order of their
-- ids, and records each redrive. The parameters are those of list.sql, but $9 is the limit of redriven
-- events. If $11 is true, they are only counted. Discarded events match only if $5 is their reason.
-- Returns the source of each.
--
-- Bound: one range scan or the probes for a key as in list.sql, cut by $10. Then one probe of each table that is needed for
-- each row looked at. The update goes by key and fence: see settle_delivered.sql.
-- Index: for the scan events_key, deliveries_dead or deliveries_pkey, by the path. For the probes
-- events_pkey, deliveries_pkey, attempts_pkey and actions_pkey.
-- Locks: the redriven rows of deliveries in the order of their ids, skipping locked rows, which
-- another session redrives or deletes. So it never waits, and cannot deadlock.
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
        select owed.event_id, owed.source, owed.status, owed.reason, owed.fence
        from keyed
        cross join lateral (
            select id from events where source = keyed.source and idempotency_key = $3 limit 1
        ) as event
        cross join lateral (
            select event_id, source, status, case when discarded_fence = fence then 'discarded' else reason end as reason, fence
            from deliveries
            where event_id = event.id
            limit 1
        ) as owed
        where event.id >= $7 and event.id < $8
        order by owed.event_id
        limit $10
    )
    union all
    (
        select event_id, source, status, case when discarded_fence = fence then 'discarded' else reason end as reason, fence
        from deliveries
        where $1 = 'dead_letters' and source = $2 and due_at is null and event_id >= $7 and event_id < $8
        order by event_id
        limit $10
    )
    union all
    (
        select event_id, source, status, case when discarded_fence = fence then 'discarded' else reason end as reason, fence
        from deliveries
        where $1 = 'owed' and event_id >= $7 and event_id < $8
        order by event_id
        limit $10
    )
),
meant as materialized (
    select looked.event_id, looked.source, looked.fence
    from looked
    left join lateral (
        select idempotency_key from events where id = looked.event_id limit 1
    ) as event on $3 is not null
    left join lateral (
        select status_code from attempts where event_id = looked.event_id order by attempt desc limit 1
    ) as tried on $6 is not null
    where looked.status = $4
        and ($2 is null or looked.source = $2)
        and ($3 is null or event.idempotency_key = $3)
        and case when $5 is null then looked.reason <> 'discarded' else looked.reason = $5 end
        and ($6 is null or tried.status_code = $6)
    order by looked.event_id
    limit $9
),
held as materialized (
    select row.event_id, row.fence
    from meant
    cross join lateral (
        select event_id, fence
        from deliveries
        where event_id = meant.event_id and fence = meant.fence and status = 'dead_lettered'
        for update skip locked
    ) as row
    where not $11
),
moved as (
    update deliveries as row
    set status = 'queued',
        budget_from = row.attempt,
        fence = row.fence + 1,
        due_at = statement_timestamp(),
        ended_at = null,
        reason = null
    where row.event_id = any (array(select event_id from held)) and ((row.event_id, row.fence) in (select event_id, fence from held)) is true
    returning row.event_id, row.source, row.fence, row.attempt
),
noted as (
    insert into actions (event_id, fence, at, attempt, action)
    select event_id, fence, statement_timestamp(), attempt, 'redriven' from moved
    on conflict (event_id, fence) do nothing
)
select
    (select count(*) from looked) as looked,
    (select event_id from looked order by event_id desc limit 1) as last,
    (select count(*) from meant) as meant,
    (select event_id from meant order by event_id desc limit 1) as last_meant,
    case
        when $11 then (select coalesce(array_agg(source), '{}') from meant)
        else (select coalesce(array_agg(source), '{}') from moved)
    end as changed
