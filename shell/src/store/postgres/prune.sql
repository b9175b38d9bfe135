-- Looks at up to $2 events after $1 in the order of their ids. Deletes those that ended before
-- their retention, with their delivery, their attempts and their actions. The retention is $3 microseconds for
-- delivered events and $4 for dead letters. Returns one row: the number of events looked at, the
-- last id, the current time in microseconds, the number of deleted events, and how many of these were
-- dead letters, and discarded ones. Events that were received within the shorter retention are not examined further.
--
-- A dead letter is left for the next pass if another session redrives it, or if its row has another
-- fence when it is locked. An event is deleted only if its dead letter was locked, or if it has
-- none. A delivered event that was queued again since the snapshot is left, too: its row in events
-- has another number of redrives. The deletes go by the key: see settle_delivered.sql.
--
-- A program of the previous version, which may still run during an upgrade, deletes events and
-- leaves their actions. Such rows are deleted in the range of ids that a step looks at. Rows that cannot be
-- examined within the limit are left for later passes.
--
-- Bound: a range scan of events, cut by the limit, and one of actions, cut by four times the limit. Then
-- probes of the other tables for each event, and one of events for each action.
-- Index: events_pkey, deliveries_pkey, attempts_pkey, actions_pkey.
-- Locks: rows of dead letters in deliveries in the order of their ids, then rows of events in the
-- order of their ids, then rows of actions without an event. All three skip locked rows. So it never
-- waits, and cannot deadlock.
with
scanned as materialized (
    select id, received_at, redrives
    from events
    where $1::uuid is null or id > $1
    order by id
    limit $2
),
aged as materialized (
    select * from scanned where received_at <= statement_timestamp() - least($3::bigint, $4::bigint) * interval '1 microsecond'
),
over as materialized (
    select
        aged.id, aged.redrives, owed.fence, owed.event_id is not null as dead,
        owed.event_id is not null and owed.discarded_fence is not distinct from owed.fence as discarded
    from aged
    left join lateral (select event_id, fence, ended_at, discarded_fence from deliveries where event_id = aged.id limit 1) as owed on true
    left join lateral (
        select ended_at from attempts where event_id = aged.id order by attempt desc limit 1
    ) as last on owed.event_id is null
    where
        owed.event_id is null and coalesce(last.ended_at, aged.received_at) <= statement_timestamp() - $3::bigint * interval '1 microsecond'
        or owed.event_id is not null and owed.ended_at <= statement_timestamp() - $4::bigint * interval '1 microsecond'
),
letters as materialized (
    select over.id
    from over
    cross join lateral (
        select event_id
        from deliveries
        where event_id = over.id and fence = over.fence and status = 'dead_lettered'
        for update skip locked
    ) as locked
    where over.dead
),
doomed as materialized (
    select over.id, over.dead, over.discarded
    from over
    cross join lateral (
        select id
        from events
        where id = over.id and redrives is not distinct from over.redrives
        for update skip locked
    ) as event
    where not over.dead or (over.id in (select id from letters)) is true
),
no_letters as (
    delete from deliveries
    where event_id = any (array(select id from doomed where dead))
),
no_attempts as (
    delete from attempts
    where event_id = any (array(select id from doomed))
),
left_over as materialized (
    select past.event_id, past.fence
    from (
        select event_id, fence
        from actions
        where event_id > coalesce($1, '00000000-0000-0000-0000-000000000000'::uuid) and event_id <= case
            when (select count(*) from scanned) < $2 then 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid
            else (select id from scanned order by id desc limit 1)
        end
        order by event_id
        limit 4 * $2
    ) as past
    left join lateral (select id from events where id = past.event_id limit 1) as event on true
    where event.id is null
),
done as materialized (
    select past.event_id, past.fence
    from doomed
    cross join lateral (select event_id, fence from actions where event_id = doomed.id offset 0) as past
    union all
    select locked.event_id, locked.fence
    from left_over
    cross join lateral (
        select event_id, fence
        from actions
        where event_id = left_over.event_id and fence = left_over.fence
        for update skip locked
    ) as locked
),
no_actions as (
    delete from actions as row
    where row.event_id = any (array(select event_id from done)) and ((row.event_id, row.fence) in (select event_id, fence from done)) is true
),
no_events as (delete from events where id = any (array(select id from doomed)))
select
    (select count(*) from scanned) as scanned,
    (select id from scanned order by id desc limit 1) as last,
    floor(extract(epoch from statement_timestamp()) * 1000000)::bigint as now_us,
    (select count(*) from doomed) as changed,
    (select count(*) from doomed where dead and not discarded) as dead_lettered,
    (select count(*) from doomed where discarded) as discarded
