-- Reads the paused sources.
--
-- Bound: the number of paused sources.
-- Index: the primary key of paused_sources.
-- Locks: the database's write lock, which the transaction holds.
select source from paused_sources
