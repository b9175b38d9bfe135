-- Takes the order back that nothing of the source ?1 is claimed.
--
-- Bounded by: the primary key of paused_sources.
delete from paused_sources where source = ?1
