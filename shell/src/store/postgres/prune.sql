-- Looks at the next events in the order of their ids and deletes those that ended before their retention, with their
-- delivery and their attempts. Answers one row: how many were looked at, the last one's id, whether that one is old
-- enough for a later one to be over too, and how many were deleted.
--
-- Bounded by: the primary key of events, cut by the limit; then probes of the other tables' primary keys.
-- Locks: dead letters' rows in the order of their ids, then events in the order of their ids, both skipping what is
-- locked. So it never waits, and cannot deadlock. A dead letter that is being redriven is skipped, or was moved on
-- and is checked again; an event goes only if its dead letter was locked or it has none.
with
scanned as materialized (
    select id, received_at
    from events
    where $1::uuid is null or id > $1
    order by id
    limit $2
),
over as materialized (
    select scanned.id, owed.event_id is not null as dead
    from scanned
    left join deliveries owed on owed.event_id = scanned.id
    left join lateral (
        select ended_at from attempts where event_id = scanned.id order by attempt desc limit 1
    ) as last on owed.event_id is null
    where case
        when owed.event_id is null
            then coalesce(last.ended_at, scanned.received_at) <= statement_timestamp() - $3::bigint * interval '1 microsecond'
        else owed.ended_at <= statement_timestamp() - $4::bigint * interval '1 microsecond'
    end
),
letters as materialized (
    select owed.event_id
    from over
    join deliveries owed on owed.event_id = over.id
    where over.dead
        and owed.status = 'dead_lettered'
        and owed.ended_at <= statement_timestamp() - $4::bigint * interval '1 microsecond'
    order by owed.event_id
    for update of owed skip locked
),
doomed as materialized (
    select event.id
    from over
    left join letters on letters.event_id = over.id
    join events event on event.id = over.id
    where not over.dead or letters.event_id is not null
    order by event.id
    for update of event skip locked
),
no_letters as (delete from deliveries using doomed where deliveries.event_id = doomed.id),
no_attempts as (delete from attempts using doomed where attempts.event_id = doomed.id),
no_events as (delete from events using doomed where events.id = doomed.id)
select
    (select count(*) from scanned) as scanned,
    (select id from scanned order by id desc limit 1) as last,
    coalesce(
        (select received_at from scanned order by id desc limit 1)
            <= statement_timestamp() - least($3::bigint, $4::bigint) * interval '1 microsecond',
        false
    ) as old,
    (select count(*) from doomed) as deleted
