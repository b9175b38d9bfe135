-- Appends attempts. None of them was recorded before, unless somebody changed rows by hand: then its record stays as it
-- is, since one row must not keep all others from being claimed or settled.
-- $2 is a JSON array of [event, attempt, ended, took, verdict, status code, error, excerpt in hex].
--
-- Bounded by: one insert for each attempt.
insert into attempts (event_id, attempt, ended_at, took_us, verdict, status_code, error, excerpt)
select
    unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3,
    value ->> 4, value ->> 5, value ->> 6, unhex(value ->> 7)
from json_each($2)
where true -- without it, `on` would join
on conflict (event_id, attempt) do nothing
