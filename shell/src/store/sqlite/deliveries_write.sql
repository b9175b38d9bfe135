-- Writes rows after their transitions. $3 is a JSON array of [event, status, attempt, budget from,
-- fence, due, ended, reason].
--
-- Bound: one probe for each row.
-- Index: the primary key of deliveries.
-- Locks: the database's write lock, which the transaction holds.
update deliveries
set status = new.value ->> 1,
    attempt = new.value ->> 2,
    budget_from = new.value ->> 3,
    fence = new.value ->> 4,
    due_at = new.value ->> 5,
    ended_at = new.value ->> 6,
    reason = new.value ->> 7
from jsonb_each($3) new
where deliveries.event_id = unhex(new.value ->> 0)
