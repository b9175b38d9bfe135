-- Appends attempts. $2 is a JSON array of [event, attempt, ended, took, verdict, status code,
-- error, excerpt in hex].
--
-- An attempt has no record yet, unless someone changed rows by hand. In that case the record stays
-- as it is: one row must not prevent the claim or settlement of all others.
--
-- Bound: one insert for each attempt.
-- Index: the primary key of attempts.
-- Locks: the database's write lock, which the transaction holds.
insert into attempts (event_id, attempt, ended_at, took_us, verdict, status_code, error, excerpt)
select
    unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3,
    value ->> 4, value ->> 5, value ->> 6, unhex(value ->> 7)
from jsonb_each($2)
where true -- otherwise SQLite parses `on` as the constraint of a join
on conflict (event_id, attempt) do nothing
