-- Reads the rows of the source ?1 that are due at ?2, oldest due first, at most ?3. Returns none
-- while the source is paused. Each row has the size of its event in bytes: only the lengths of
-- query, headers and body are read.
--
-- Bound: one range scan, cut by the limit. One probe of events for each row.
-- Index: deliveries_due, the primary key of events and of paused_sources.
-- Locks: the database's write lock, which the transaction holds.
select
    event_id, status, attempt, budget_from, fence, reason,
    (select length(query) + length(headers) + length(body) from events where id = deliveries.event_id) as size
from deliveries
where source = ?1 and due_at <= ?2 and not exists (select 1 from paused_sources where source = ?1)
order by due_at, event_id
limit ?3
