-- Reads the request of one event without its body. Only the size of the body is read, which is in
-- the row itself.
--
-- Bound: one event.
-- Index: events_pkey.
-- Locks: none.
select
    source,
    (extract(epoch from received_at) * 1000000)::bigint as received_at,
    (extract(epoch from erased_at) * 1000000)::bigint as erased_at,
    fingerprint,
    query,
    headers,
    octet_length(body)::bigint as body_bytes
from events
where id = $1
