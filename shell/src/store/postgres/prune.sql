-- Looks at the next events in the order of their ids and deletes those that ended before their retention, with their
-- delivery and their attempts. Answers one row: how many were looked at, the last one's id, the time now in microseconds,
-- and how many were deleted. What was received since both retentions began is looked at no further.
--
-- Bounded by: the primary key of events, cut by the limit; then probes of the other tables' primary keys.
-- Locks: dead letters' rows in the order of their ids, then events in the order of their ids, both skipping what is
-- locked. So it never waits, and cannot deadlock. A dead letter that is being redriven, or is another version of its row
-- by the time it is locked, is left for the next pass; an event goes only if its dead letter was locked or it has none.
-- So is a delivered event that was queued once more since, which makes another version of its row in events.
-- What is locked is deleted where it stands: see settle.sql.
with
scanned as materialized (
    select id, received_at, ctid as place
    from events
    where $1::uuid is null or id > $1
    order by id
    limit $2
),
aged as materialized (
    select * from scanned where received_at <= statement_timestamp() - least($3::bigint, $4::bigint) * interval '1 microsecond'
),
over as materialized (
    select aged.id, aged.place, owed.place as letter, owed.event_id is not null as dead
    from aged
    left join lateral (select ctid as place, event_id, ended_at from deliveries where event_id = aged.id limit 1) as owed on true
    left join lateral (
        select ended_at from attempts where event_id = aged.id order by attempt desc limit 1
    ) as last on owed.event_id is null
    where case
        when owed.event_id is null
            then coalesce(last.ended_at, aged.received_at) <= statement_timestamp() - $3::bigint * interval '1 microsecond'
        else owed.ended_at <= statement_timestamp() - $4::bigint * interval '1 microsecond'
    end
),
letters as materialized (
    select over.id, locked.place
    from over
    cross join lateral (
        select ctid as place
        from deliveries
        where event_id = over.id and status = 'dead_lettered'
        for update skip locked
    ) as locked
    where over.dead and locked.place = over.letter
),
doomed as materialized (
    select over.id, event.place, letters.place as letter
    from over
    left join letters on letters.id = over.id
    cross join lateral (select ctid as place from events where id = over.id for update skip locked) as event
    where event.place = over.place and (not over.dead or letters.id is not null)
),
no_letters as (
    delete from deliveries
    where ctid = any (array(select letter from doomed where letter is not null))
),
no_attempts as (
    delete from attempts
    where ctid = any (array(
        select tried.place
        from doomed
        cross join lateral (select ctid as place from attempts where event_id = doomed.id offset 0) as tried
    ))
),
no_events as (delete from events where ctid = any (array(select place from doomed)))
select
    (select count(*) from scanned) as scanned,
    (select id from scanned order by id desc limit 1) as last,
    floor(extract(epoch from statement_timestamp()) * 1000000)::bigint as now_us,
    (select count(*) from doomed) as changed
