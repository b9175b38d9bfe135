-- Sends a delivered event back to queued with a new budget, to be delivered once more. Answers its id, or nothing if it
-- is not delivered, its payload was erased, or it is being queued or deleted by somebody else at this moment.
--
-- Its row in deliveries is gone; the fence of the new one is beyond all that were given: see Delivery::redelivered.
--
-- Bounded by: the primary keys of events, deliveries and attempts.
-- Locks: the event's row. It is written as it is and where it stands, which makes another version of it. A pruning that found it delivered
-- then leaves it. Of two redrives at once, the one that waited has locked a version that its snapshot does not see, writes
-- nothing, and looks again: the event may have been delivered once more in between.
with
judged as materialized (
    select id
    from events
    where id = $1 and erased_at is null and not exists (select from deliveries where event_id = $1)
),
locked as materialized (
    select row.place
    from judged
    cross join lateral (select ctid as place from events where id = judged.id for update) as row
),
held as (
    update events
    set received_at = received_at
    where ctid = any (array(select place from locked))
    returning id, source
)
insert into deliveries (event_id, due_at, attempt, budget_from, fence, source, status)
select held.id, statement_timestamp(), last.attempt, last.attempt, last.attempt << 31, held.source, 'queued'
from held
cross join lateral (
    select coalesce((select attempt from attempts where event_id = held.id order by attempt desc limit 1), 0) as attempt
) as last
on conflict (event_id) do nothing
returning event_id
