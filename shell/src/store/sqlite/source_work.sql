-- Reads the work of the source ?1 at the time ?2. It counts the rows of each status: at most ?3
-- rows that are due, ?3 that will be due and ?3 dead letters that are not discarded, among the newest
-- ?4. It also returns how long the oldest has been due, and since when the source is paused.
--
-- Bound: three range scans of deliveries_due, cut by ?3, and at most two of deliveries_dead, cut by ?4.
-- Index: deliveries_due, deliveries_dead, and the primary key of paused_sources.
-- Locks: none. A reader does not block the writer.
with
due as materialized (
    select status from deliveries where source = ?1 and due_at <= ?2 order by due_at limit ?3
),
later as materialized (
    select status from deliveries where source = ?1 and due_at > ?2 order by due_at limit ?3
),
waiting as (select status from due union all select status from later),
dead as materialized (
    select 1
    from (
        select discarded_fence is fence as is_discarded
        from deliveries
        where source = ?1 and due_at is null
        order by event_id desc
        limit ?4
    )
    where not is_discarded
    limit ?3
),
letters as (
    select count(*) as looked
    from (select 1 from deliveries where source = ?1 and due_at is null order by event_id desc limit ?4)
)
select
    (select count(*) from waiting where status = 'queued') as queued,
    (select count(*) from waiting where status = 'processing') as processing,
    (select count(*) from waiting where status = 'retrying') as retrying,
    (select count(*) from dead) as dead_lettered,
    max((select count(*) from due), (select count(*) from later), (select count(*) from dead)) >= ?3
        or (select looked from letters) >= ?4 as is_partial,
    ?2 - (select due_at from deliveries where source = ?1 and due_at <= ?2 order by due_at limit 1) as behind_us,
    (select paused_at from paused_sources where source = ?1) as paused_at
