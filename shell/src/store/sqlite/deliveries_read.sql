-- Reads the rows of the events whose ids are in the JSON array ?1.
--
-- Bound: one probe for each id.
-- Index: the primary key of deliveries.
-- Locks: the database's write lock, which the transaction holds.
select
    event_id, status, attempt, budget_from, fence,
    case when discarded_fence = fence then 'discarded' else reason end as reason
from deliveries
where event_id in (select unhex(value) from json_each(?1))
