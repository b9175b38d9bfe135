-- Resumes a source. Returns the source if it was paused before, and a null if an event was locked
-- instead.
--
-- A source that is not paused has no row to lock. In that case one row of events is locked, so that
-- the commit waits for the standby, as the commit of the first resume did. That wait may have been
-- interrupted.
--
-- Bound: one row of each table.
-- Index: paused_sources_pkey, events_pkey.
-- Locks: the source's row of paused_sources, or the newest row of events for key share. It waits
-- for another session that resumes the same source, or deletes that event.
with
resumed as (delete from paused_sources where source = $1 returning source),
held as materialized (
    select event.id
    from (select id from events order by id desc limit 1) as newest
    cross join lateral (select id from events where id = newest.id for key share) as event
    where not exists (select from resumed)
)
select source from resumed
union all
select null from held
