-- Queues one delivered event again with a new retry budget, and records the action. Returns its id.
-- Returns nothing if the event is not delivered, if its payload was erased, or if another session is
-- queueing or deleting it.
--
-- The old row in deliveries is deleted. The fence of the new row is greater than all earlier ones:
-- see DeliveryState::redelivered.
--
-- Bound: one event.
-- Index: events_pkey, deliveries_pkey, attempts_pkey, actions_pkey.
-- Locks: the event's row of events. Its number of redrives grows, so a prune that found the event
-- delivered leaves it. If two redrives run at once, the one that waited finds another number. It
-- writes nothing, and the caller tries again: the event may have been delivered again in between.
-- The same if retention erases the payload while the redrive waits for the row.
with
judged as materialized (
    select id, redrives
    from events
    where id = $1 and erased_at is null and not exists (select from deliveries where event_id = $1)
),
locked as materialized (
    select row.id
    from judged
    cross join lateral (
        select id
        from events
        where id = judged.id and redrives is not distinct from judged.redrives and erased_at is null
        for update
    ) as row
),
held as (
    update events
    set redrives = coalesce(redrives, 0) + 1
    where id = any (array(select id from locked))
    returning id, source
),
moved as (
    insert into deliveries (event_id, due_at, attempt, budget_from, fence, source, status)
    select held.id, statement_timestamp(), last.attempt, last.attempt, last.attempt << 31, held.source, 'queued'
    from held
    cross join lateral (
        select coalesce((select attempt from attempts where event_id = held.id order by attempt desc limit 1), 0) as attempt
    ) as last
    on conflict (event_id) do nothing
    returning event_id, fence, attempt
),
noted as (
    insert into actions (event_id, fence, at, attempt, action)
    select event_id, fence, statement_timestamp(), attempt, 'redriven' from moved
    on conflict (event_id, fence) do nothing
)
select event_id from moved
