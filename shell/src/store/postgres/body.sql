-- Reads the body of one event, and whether it was erased.
--
-- Bound: one event.
-- Index: events_pkey.
-- Locks: none.
select body, erased_at is not null as is_erased
from events
where id = $1
