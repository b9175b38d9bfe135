-- The ids of the events whose row numbers are more than ?1 and at most ?2.
--
-- Bounded by: one range of events.
select id from events where rowid > ?1 and rowid <= ?2
