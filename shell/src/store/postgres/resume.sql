-- Resumes a source, and answers the source if it was paused before. It answers a null if it locked an event instead.
--
-- A source that is not paused has no row to lock. Then one row of events is locked: that makes the commit wait for the
-- standby, as the first resume's commit did, which may have been cut short.
--
-- Bounded by: the primary keys of paused_sources and events.
-- Locks: the source's row, or the newest event's row for key share. It waits for another session that is resuming the
-- same source, or deleting that event.
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
