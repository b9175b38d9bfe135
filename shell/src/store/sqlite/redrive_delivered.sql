-- Queues the delivered event ?1 once more, due at ?2, after its ?3 attempts and with the fence ?4.
--
-- Bounded by: the primary keys of events and deliveries.
insert into deliveries (event_id, due_at, attempt, budget_from, fence, source, status)
select id, ?2, ?3, ?3, ?4, source, 'queued'
from events
where id = ?1
