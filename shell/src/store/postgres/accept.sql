-- Inserts a batch of new events and their deliveries. Returns the new events, whether each was
-- claimed, and the time. A row whose (source, key) exists is not changed and not returned.
--
-- $8: events to claim on insert. $9: their leases in microseconds. Such a row starts as claim.sql
-- would leave it, unless its source is paused.
--
-- Only events_key arbitrates conflicts: a new event with the id of another event fails the whole
-- statement.
--
-- Keep this header short: pg_stat_activity shows only the first 1,024 bytes of a statement, and
-- a test looks for the insert there.
--
-- Bound: one probe of each index for each row. $8 is searched once for each new row.
-- Index: events_key, paused_sources_pkey.
-- Locks: only new rows. A row waits for a transaction that inserts or deletes the same key. The
-- caller sorts the batch by (source, key), so all transactions wait in one order and cannot
-- deadlock.
with
inserted as (
    insert into events (id, source, idempotency_key, fingerprint, received_at, query, headers, body)
    select new.id, new.source, new.idempotency_key, new.fingerprint, statement_timestamp(), new.query, new.headers, new.body
    from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bytea[])
        as new (id, source, idempotency_key, fingerprint, query, headers, body)
    on conflict (source, idempotency_key) do nothing
    returning id, source
),
started as (
    select inserted.id, inserted.source, pauses.number = 0 and lease.us is not null as claimed,
        case when pauses.number = 0 and lease.us is not null then lease.us else 0 end * interval '1 microsecond' as wait
    from inserted
    cross join lateral (select ($9::bigint[])[array_position($8::uuid[], inserted.id)] as us) as lease
    cross join lateral (
        select count(*) as number from (select from paused_sources where source = inserted.source limit 1) as pause
    ) as pauses
),
owed as (
    insert into deliveries (event_id, source, status, attempt, budget_from, fence, due_at)
    select
        id, source,
        case when claimed then 'processing' else 'queued' end,
        claimed::int, 0, claimed::int,
        statement_timestamp() + wait
    from started
    returning event_id, status = 'processing' as claimed
)
select event_id, claimed, (extract(epoch from statement_timestamp()) * 1000000)::bigint as received_us from owed
