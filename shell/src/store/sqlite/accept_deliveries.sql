-- Inserts the deliveries that are owed for the events that the statement before this one inserted. $1 is as it was there;
-- the last of each array is for how long the event is to be claimed in the same moment, or null: then its row starts as a
-- claim would leave it. Not of a paused source: of that nothing is claimed. $4 is the time now, as due times have it.
--
-- They have the row numbers up to the last one that was given: each new row of events gets the number after the greatest
-- that is there, and a key that is there takes none. An id that was there before has a smaller one.
--
-- Bounded by: one probe of events by its id for each event of the batch, and one insert for each that is new.
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
    from json_each($1)
) as asked
cross join events as event on event.id = asked.id
where event.rowid > last_insert_rowid() - changes() and event.rowid <= last_insert_rowid()
