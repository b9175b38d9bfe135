-- Queues one dead letter again with a new retry budget, and records the action $2. Returns its id, or
-- nothing if the event is not dead-lettered.
--
-- Bound: one row.
-- Index: deliveries_pkey, actions_pkey.
-- Locks: the row of deliveries. It may wait for a prune that deletes the row, and then returns
-- nothing.
with
moved as (
    update deliveries
    set status = 'queued',
        budget_from = attempt,
        fence = fence + 1,
        due_at = statement_timestamp(),
        ended_at = null,
        reason = null
    where event_id = $1 and status = 'dead_lettered'
    returning event_id, fence, attempt
),
noted as (
    insert into actions (event_id, fence, at, attempt, action)
    select event_id, fence, statement_timestamp(), attempt, $2::text from moved
    on conflict (event_id, fence) do nothing
)
select event_id from moved
