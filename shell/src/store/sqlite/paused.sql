-- The sources that are paused.
--
-- Bounded by: the sources.
select source from paused_sources
