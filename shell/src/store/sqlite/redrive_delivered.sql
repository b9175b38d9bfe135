-- Queues the delivered event ?1 again. It is due at ?2, has had ?3 attempts, and gets the fence ?4.
--
-- Bound: one row of each table.
-- Index: the primary key of events and of deliveries.
-- Locks: the database's write lock, which the transaction holds.
insert into deliveries (event_id, due_at, attempt, budget_from, fence, source, status)
select id, ?2, ?3, ?3, ?4, source, 'queued'
from events
where id = ?1
