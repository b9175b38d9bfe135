-- Sends a dead letter back to queued with a new budget. Answers its id, or nothing if it is not dead-lettered.
--
-- Bounded by: the primary key of deliveries.
-- Locks: the one row. It may wait for a pruning that is deleting it, and then answers nothing.
update deliveries
set status = 'queued',
    budget_from = attempt,
    fence = fence + 1,
    due_at = statement_timestamp(),
    ended_at = null,
    reason = null
where event_id = $1 and status = 'dead_lettered'
returning event_id
