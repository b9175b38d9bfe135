-- The rows of the events whose ids are in the JSON array ?1.
--
-- Bounded by: the primary key of deliveries, one probe for each id.
select event_id, status, attempt, budget_from, fence, reason
from deliveries
where event_id in (select unhex(value) from json_each(?1))
