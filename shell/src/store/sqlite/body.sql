-- Reads the body of one event, and whether it was erased.
--
-- Bound: one event.
-- Index: the primary key of events.
-- Locks: none. A reader does not block the writer.
select body, erased_at is not null as is_erased
from events
where id = ?1
