-- Inserts new events. ?1 is a JSON array of [id, source, key, offset, length of headers, length of
-- body, lease, length of query]. ?2 has their bytes: at the offset the fingerprint, then the
-- headers, the body and the query. ?3 is the current time.
--
-- Bound: one insert for each event.
-- Index: the primary key of events, and the unique index on (source, idempotency_key).
-- Locks: the database's write lock, which the transaction holds.
insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body, query)
select
    unhex(value ->> 0),
    value ->> 1,
    value ->> 2,
    substr(?2, (value ->> 3) + 1, 32),
    ?3,
    substr(?2, (value ->> 3) + 33, value ->> 4),
    substr(?2, (value ->> 3) + 33 + (value ->> 4), value ->> 5),
    substr(?2, (value ->> 3) + 33 + (value ->> 4) + (value ->> 5), value ->> 7)
from jsonb_each(?1)
where true -- otherwise SQLite parses `on` as the constraint of a join
