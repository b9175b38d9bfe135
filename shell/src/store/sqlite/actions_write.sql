-- Records actions. ?1 is a JSON array of [event, fence, time, attempt, action].
--
-- An action has no row yet, unless someone changed rows by hand: see attempts_write.sql.
--
-- Bound: one insert for each action.
-- Index: the primary key of actions.
-- Locks: the database's write lock, which the transaction holds.
insert into actions (event_id, fence, at, attempt, action)
select unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4
from jsonb_each(?1)
where true -- otherwise SQLite parses `on` as the constraint of a join
on conflict (event_id, fence) do nothing
