-- Inserts the deliveries that are owed for the events that the statement before this one inserted. $3 is the time now.
--
-- They have the row numbers up to the last one that was given: each new row of events gets the number after the greatest
-- that is there, and a key that is there takes none.
--
-- Bounded by: one range of events, and one insert for each.
insert into deliveries (event_id, source, status, attempt, budget_from, fence, due_at)
select id, source, 'queued', 0, 0, 0, $3
from events
where rowid > last_insert_rowid() - changes() and rowid <= last_insert_rowid()
