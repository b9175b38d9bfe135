-- Looks at up to $2 events after $1 in the order of their ids. Erases the queries, headers and
-- bodies of those that were delivered before their retention of $3 microseconds. Returns one row:
-- the number of events looked at, the last id, the current time in microseconds, and the number of
-- erased payloads. Events that were received within the retention are not examined further.
--
-- An event that was queued again since this statement's snapshot has another number of redrives when
-- it is locked, and keeps its payload.
--
-- Bound: a range scan of events, cut by the limit. Then one probe of each other table for each
-- event.
-- Index: events_pkey, deliveries_pkey, attempts_pkey.
-- Locks: rows of events in the order of their ids, skipping locked rows. So it never waits, and
-- cannot deadlock.
with
scanned as materialized (
    select id, received_at, erased_at, redrives
    from events
    where $1::uuid is null or id > $1
    order by id
    limit $2
),
aged as materialized (
    select * from scanned where received_at <= statement_timestamp() - $3::bigint * interval '1 microsecond'
),
over as materialized (
    select aged.id, aged.redrives
    from aged
    left join lateral (select event_id from deliveries where event_id = aged.id limit 1) as owed on true
    left join lateral (
        select ended_at from attempts where event_id = aged.id order by attempt desc limit 1
    ) as last on owed.event_id is null
    where aged.erased_at is null
        and owed.event_id is null
        and coalesce(last.ended_at, aged.received_at) <= statement_timestamp() - $3::bigint * interval '1 microsecond'
),
locked as materialized (
    select row.id
    from over
    cross join lateral (
        select id
        from events
        where id = over.id and redrives is not distinct from over.redrives
        for update skip locked
    ) as row
),
erased as (
    update events
    set query = '', headers = '', body = '', erased_at = statement_timestamp()
    where id = any (array(select id from locked))
    returning id
)
select
    (select count(*) from scanned) as scanned,
    (select id from scanned order by id desc limit 1) as last,
    floor(extract(epoch from statement_timestamp()) * 1000000)::bigint as now_us,
    (select count(*) from erased) as changed
