-- Reads the request of one event without its body. The size of the body is read from the head of the
-- row. A query is stored behind the body, so reading one that is not empty passes over the pages of
-- the body.
--
-- Bound: one event.
-- Index: the primary key of events.
-- Locks: none. A reader does not block the writer.
select source, received_at, erased_at, fingerprint, query, headers, length(body) as body_bytes
from events
where id = ?1
