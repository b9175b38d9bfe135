-- Looks at up to ?2 events after ?1 in the order of their ids. Returns each id, whether the event
-- can be deleted (it was delivered at ?3 or before, or dead-lettered at ?4 or before), and whether it
-- is not delivered, or discarded. Events that were received after both times are not examined further.
--
-- Bound: a range scan of events, cut by the limit. Then one probe of each other table for each
-- event.
-- Index: the primary key of events, of deliveries and of attempts.
-- Locks: the database's write lock, which the transaction holds.
select
    event.id,
    case
        when event.received_at > max(?3, ?4) then false
        when owed.event_id is null then coalesce(
            (select tried.ended_at from attempts tried where tried.event_id = event.id order by tried.attempt desc limit 1),
            event.received_at
        ) <= ?3
        else coalesce(owed.ended_at <= ?4, false)
    end as over,
    owed.event_id is not null as owed,
    owed.event_id is not null and owed.discarded_fence is owed.fence as discarded
from events event
left join deliveries owed on owed.event_id = event.id
where event.id > coalesce(?1, x'')
order by event.id
limit ?2
