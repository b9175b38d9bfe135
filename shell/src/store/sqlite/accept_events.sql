-- Inserts new events. ?1 is a JSON array of [id, source, key, offset, headers' length, body's length, lease], and ?2 holds
-- their bytes one after another: at the offset the fingerprint, then the headers, then the body. ?3 is the time now.
--
-- Bounded by: one insert for each event.
insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
select
    unhex(value ->> 0),
    value ->> 1,
    value ->> 2,
    substr(?2, (value ->> 3) + 1, 32),
    ?3,
    substr(?2, (value ->> 3) + 33, value ->> 4),
    substr(?2, (value ->> 3) + 33 + (value ->> 4), value ->> 5)
from json_each(?1)
where true -- without it, `on` would join
