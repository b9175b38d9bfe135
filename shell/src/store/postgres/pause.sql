-- Pauses a source, and answers the source if it was not paused before.
--
-- A source that is paused already is not written, but its row is locked: that makes the commit wait for the standby, as
-- the first pause's commit did, which may have been cut short.
--
-- Bounded by: the primary key of paused_sources.
-- Locks: the source's row. It waits for another session that is pausing or resuming the same source.
insert into paused_sources (source, paused_at)
values ($1, statement_timestamp())
on conflict (source) do update set paused_at = excluded.paused_at where false
returning source
