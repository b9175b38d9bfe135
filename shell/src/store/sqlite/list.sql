-- Reads a page of the events that match a filter, newest first, each with its newest attempt.
--
-- ?1: the path. ?2 to ?6: the filter (source, key, status, reason, status code; null matches all).
-- ?7 and ?8: the span (from, until). ?9: the limit of events shown. ?10: the limit of events looked
-- at.
--
-- Each row has the number of events looked at, and the last of them. A page without events is one
-- row without an id. It is one statement with one snapshot, so an event without a row in deliveries
-- is delivered.
--
-- A key without a source is looked up in each source that has events. These are found by stepping
-- from each source to the next greater one.
--
-- Bound: one range scan, cut by ?10; for a key one probe, or without a source two for each source.
-- For each event looked at, one probe of each table that the filter needs. For each event shown, one
-- probe of each table.
-- Index: for the scan the unique index on (source, idempotency_key), deliveries_dead, or the
-- primary key of deliveries or of events, by the path. The conditions on the path are constants,
-- evaluated before anything is read. For the probes the primary keys.
-- Locks: none. A reader does not block the writer.
with recursive
stored (source) as (
    select min(source) from events where ?1 = 'key' and ?2 is null
    union all
    select (select min(source) from events where source > stored.source)
    from stored
    where stored.source is not null
),
keyed (source) as (
    select ?2 where ?1 = 'key' and ?2 is not null
    union all
    select source from stored where source is not null
),
looked as materialized (
    select * from (
        select event.id, event.source, null as status, null as reason
        from keyed
        cross join events event on event.source = keyed.source and event.idempotency_key = ?3
        where event.id >= ?7 and event.id < ?8
        order by event.id desc
        limit ?10
    )
    union all
    select * from (
        select event_id, source, status, case when discarded_fence = fence then 'discarded' else reason end as reason
        from deliveries
        where ?1 = 'dead_letters' and source = ?2 and due_at is null and event_id >= ?7 and event_id < ?8
        order by event_id desc
        limit ?10
    )
    union all
    select * from (
        select event_id, source, status, case when discarded_fence = fence then 'discarded' else reason end as reason
        from deliveries
        where ?1 = 'owed' and event_id >= ?7 and event_id < ?8
        order by event_id desc
        limit ?10
    )
    union all
    select * from (
        select id, source, null, null
        from events
        where ?1 = 'events' and id >= ?7 and id < ?8
        order by id desc
        limit ?10
    )
),
matching as materialized (
    select looked.id
    from looked
    where (?2 is null or looked.source = ?2)
        and (?3 is null or ?3 = (select idempotency_key from events where id = looked.id))
        and (
            ?4 is null
            or ?4 = coalesce(looked.status, (select status from deliveries where event_id = looked.id), 'delivered')
        )
        and (
            ?5 is null
            or ?5 = coalesce(
                looked.reason,
                (select case when discarded_fence = fence then 'discarded' else reason end from deliveries where event_id = looked.id)
            )
        )
        and (
            ?6 is null
            or ?6 = (select status_code from attempts where event_id = looked.id order by attempt desc limit 1)
        )
    order by looked.id desc
    limit ?9
),
page as materialized (
    select
        matching.id,
        event.source,
        event.idempotency_key,
        event.received_at,
        owed.status,
        owed.attempt,
        owed.budget_from,
        owed.due_at,
        owed.ended_at,
        case when owed.discarded_fence = owed.fence then 'discarded' else owed.reason end as reason,
        tried.attempt as tried_attempt,
        tried.ended_at as tried_ended_at,
        tried.took_us as tried_took_us,
        tried.verdict as tried_verdict,
        tried.status_code as tried_status_code,
        tried.error as tried_error,
        tried.excerpt as tried_excerpt
    from matching
    cross join events event on event.id = matching.id
    left join deliveries owed on owed.event_id = matching.id
    left join attempts tried on tried.event_id = matching.id
        and tried.attempt = (select max(attempt) from attempts where event_id = matching.id)
)
select
    (select count(*) from looked) as looked,
    (select min(id) from looked) as last,
    page.*
from (select 1) as always
left join page on true
order by page.id desc
