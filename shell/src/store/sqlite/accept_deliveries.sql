-- Inserts the deliveries of the events that the previous statement inserted. $1 is the array of
-- accept_events.sql. The item at 6 of each event is its lease in microseconds, or null. With a lease
-- its row starts as a claim would leave it, unless its source is paused. $4 is the current time on
-- the scale of due times.
--
-- New events are found by their row numbers, which end at the last one assigned. Each new row of
-- events gets the number after the greatest existing one, and an existing key takes none. An id
-- that existed before has a smaller number.
--
-- Bound: one probe of events for each event of the batch, and one insert for each new one.
-- Index: the primary key of events and of paused_sources.
-- Locks: the database's write lock, which the transaction holds.
insert into deliveries (event_id, source, status, attempt, budget_from, fence, due_at)
select
    event.id, event.source,
    case when lease is null then 'queued' else 'processing' end,
    lease is not null, 0, lease is not null,
    $4 + coalesce(lease, 0)
from (
    select
        unhex(value ->> 0) as id,
        case when not exists (select true from paused_sources where source = value ->> 1) then value ->> 6 end as lease
    from jsonb_each($1)
) as asked
cross join events as event on event.id = asked.id
where event.rowid > last_insert_rowid() - changes() and event.rowid <= last_insert_rowid()
