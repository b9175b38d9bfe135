-- Pauses a source. Returns the source if it was not paused before.
--
-- If the source is already paused, its row is locked, but not written. So the commit waits for the
-- standby, as the commit of the first pause did. That wait may have been interrupted.
--
-- Bound: one row.
-- Index: paused_sources_pkey.
-- Locks: the source's row of paused_sources. It waits for another session that pauses or resumes
-- the same source.
insert into paused_sources (source, paused_at)
values ($1, statement_timestamp())
on conflict (source) do update set paused_at = excluded.paused_at where false
returning source
