-- Pauses the source ?1. ?2 is the current time. Changes nothing if it is paused already.
--
-- Bound: one row.
-- Index: the primary key of paused_sources.
-- Locks: the database's write lock, which the transaction holds.
insert into paused_sources (source, paused_at) values (?1, ?2) on conflict (source) do nothing
