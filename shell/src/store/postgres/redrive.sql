-- Queues one dead letter again with a new retry budget. Returns its id, or nothing if the event is
-- not dead-lettered.
--
-- Bound: one row.
-- Index: deliveries_pkey.
-- Locks: the row of deliveries. It may wait for a prune that deletes the row, and then returns
-- nothing.
update deliveries
set status = 'queued',
    budget_from = attempt,
    fence = fence + 1,
    due_at = statement_timestamp(),
    ended_at = null,
    reason = null
where event_id = $1 and status = 'dead_lettered'
returning event_id
