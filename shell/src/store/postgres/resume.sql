-- Takes the order back that nothing of a source is claimed, and answers the source if there was one.
--
-- Bounded by: the primary key of paused_sources.
-- Locks: the row. It waits for somebody who is just resuming the same source.
delete from paused_sources where source = $1 returning source
