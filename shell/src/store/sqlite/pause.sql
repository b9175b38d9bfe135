-- Orders at ?2 that nothing of the source ?1 is claimed.
--
-- Bounded by: the primary key of paused_sources.
insert into paused_sources (source, paused_at) values (?1, ?2) on conflict (source) do nothing
