-- The rows of one source (?1) that are due at ?2, oldest due first, at most ?3; none while the source is paused. Each with
-- the bytes of its event, of which only the length is read.
--
-- Bounded by: one range scan of deliveries_due, cut by the limit; one probe of the primary key of events for each row.
select
    event_id, status, attempt, budget_from, fence, reason,
    (select length(headers) + length(body) from events where id = deliveries.event_id) as size
from deliveries
where source = ?1 and due_at <= ?2 and not exists (select 1 from paused_sources where source = ?1)
order by due_at, event_id
limit ?3
