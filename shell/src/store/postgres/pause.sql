-- Orders that nothing of a source is claimed, and answers the source if that was otherwise before.
--
-- Bounded by: the primary key of paused_sources.
-- Locks: the new row. It waits for somebody who is just pausing or resuming the same source.
insert into paused_sources (source, paused_at)
values ($1, statement_timestamp())
on conflict (source) do nothing
returning source
