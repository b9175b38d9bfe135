-- Discards rows after their transitions. ?1 is a JSON array of [event, fence, ended]. The time is null
-- for a row that ended before. The reason is for programs that do not know discards.
--
-- Bound: one probe for each row.
-- Index: the primary key of deliveries.
-- Locks: the database's write lock, which the transaction holds.
update deliveries
set status = 'dead_lettered',
    fence = new.value ->> 1,
    due_at = null,
    ended_at = coalesce(new.value ->> 2, ended_at),
    reason = coalesce(reason, 'permanent'),
    discarded_fence = new.value ->> 1
from jsonb_each(?1) new
where deliveries.event_id = unhex(new.value ->> 0)
