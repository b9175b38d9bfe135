-- Looks at the next events after ?1 in the order of their ids, at most ?2: id, and whether it is over, that is, delivered
-- at ?3 or before, or dead-lettered at ?4 or before. What was received since both times is looked at no further.
--
-- Bounded by: the primary key of events, cut by the limit; then probes of the other tables' primary keys.
select
    event.id,
    case
        when event.received_at > max(?3, ?4) then false
        when owed.event_id is null then coalesce(
            (select tried.ended_at from attempts tried where tried.event_id = event.id order by tried.attempt desc limit 1),
            event.received_at
        ) <= ?3
        else coalesce(owed.ended_at <= ?4, false)
    end as over
from events event
left join deliveries owed on owed.event_id = event.id
where event.id > coalesce(?1, x'')
order by event.id
limit ?2
