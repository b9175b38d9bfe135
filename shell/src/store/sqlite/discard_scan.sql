-- Reads the events that match a filter and that a discard takes, in the order of their ids. The
-- parameters are those of list.sql, but ?4 is null if waiting events are in the scope. ?11 is the
-- time: a row that is processing is in the scope once its lease has ended. Each row has the number of
-- rows looked at, and the last of them. Without an event it is one row without an id.
--
-- Bound: one range scan or the probes for a key as in list.sql, cut by ?10. Then one probe of each table that is needed for
-- each row looked at.
-- Index: as in list.sql.
-- Locks: the database's write lock, which the transaction holds.
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
        select
            owed.event_id, owed.source, owed.status, owed.attempt, owed.budget_from, owed.fence, owed.due_at,
            case when owed.discarded_fence = owed.fence then 'discarded' else owed.reason end as reason
        from keyed
        cross join events event on event.source = keyed.source and event.idempotency_key = ?3
        cross join deliveries owed on owed.event_id = event.id
        where event.id >= ?7 and event.id < ?8
        order by owed.event_id
        limit ?10
    )
    union all
    select * from (
        select
            event_id, source, status, attempt, budget_from, fence, due_at,
            case when discarded_fence = fence then 'discarded' else reason end as reason
        from deliveries
        where ?1 = 'dead_letters' and source = ?2 and due_at is null and event_id >= ?7 and event_id < ?8
        order by event_id
        limit ?10
    )
    union all
    select * from (
        select
            event_id, source, status, attempt, budget_from, fence, due_at,
            case when discarded_fence = fence then 'discarded' else reason end as reason
        from deliveries
        where ?1 = 'owed' and event_id >= ?7 and event_id < ?8
        order by event_id
        limit ?10
    )
),
meant as materialized (
    select looked.*, coalesce(looked.due_at <= ?11, false) as is_due
    from looked
    where (?4 is null or looked.status = ?4)
        and looked.reason is not 'discarded'
        and (looked.status <> 'processing' or looked.due_at <= ?11)
        and (?2 is null or looked.source = ?2)
        and (?3 is null or ?3 = (select idempotency_key from events where id = looked.event_id))
        and (?5 is null or looked.reason = ?5)
        and (
            ?6 is null
            or ?6 = (select status_code from attempts where event_id = looked.event_id order by attempt desc limit 1)
        )
    order by looked.event_id
    limit ?9
)
select
    (select count(*) from looked) as looked,
    (select max(event_id) from looked) as last,
    meant.*
from (select 1) as always
left join meant on true
order by meant.event_id
