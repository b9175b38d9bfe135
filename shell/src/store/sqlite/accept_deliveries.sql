-- Inserts the deliveries that are owed for new events: ?1 as for the events, ?2 is the time now.
--
-- Bounded by: one insert for each event.
insert into deliveries (event_id, source, status, attempt, budget_from, fence, due_at)
select unhex(value ->> 0), value ->> 1, 'queued', 0, 0, 0, ?2
from json_each(?1)
