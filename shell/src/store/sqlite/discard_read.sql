-- Reads the row of the event ?1, and whether it is due at ?2.
--
-- Bound: one row.
-- Index: the primary key of deliveries.
-- Locks: the database's write lock, which the transaction holds.
select
    event_id, source, status, attempt, budget_from, fence,
    case when discarded_fence = fence then 'discarded' else reason end as reason,
    coalesce(due_at <= ?2, false) as is_due
from deliveries
where event_id = ?1
