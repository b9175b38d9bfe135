-- Reads the ids of the events whose row numbers are greater than ?1 and at most ?2.
--
-- Bound: one range scan of events.
-- Index: the row numbers of events.
-- Locks: none. A reader does not block the writer.
select id from events where rowid > ?1 and rowid <= ?2
