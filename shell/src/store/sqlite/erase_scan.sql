-- Looks at up to ?2 events after ?1 in the order of their ids. Returns each id, and whether the
-- event's payload can be erased: it was delivered at ?3 or before, and is not erased yet. Events
-- that were received after ?3 are not examined further.
--
-- Bound: a range scan of events, cut by the limit. Then one probe of each other table for each
-- event.
-- Index: the primary key of events, of deliveries and of attempts.
-- Locks: the database's write lock, which the transaction holds.
select
    event.id,
    event.received_at <= ?3
        and owed.event_id is null
        and event.erased_at is null
        and coalesce(
            (select tried.ended_at from attempts tried where tried.event_id = event.id order by tried.attempt desc limit 1),
            event.received_at
        ) <= ?3 as over
from events event
left join deliveries owed on owed.event_id = event.id
where event.id > coalesce(?1, x'')
order by event.id
limit ?2
