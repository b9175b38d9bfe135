-- Inserts a batch of new events, each with the delivery that is owed for it, and answers those that were new with whether
-- they were claimed. A row whose (source, key) is there already changes nothing and is not answered.
--
-- $7 names events that are to be claimed in the same moment, and $8 for how long each: such a row starts as a claim would
-- leave it. Not of a paused source: of that nothing is claimed.
--
-- Bounded by: the unique index events_key, one probe for each row of the batch; each of them is looked for in $7.
-- Locks: only new rows. A row waits for another transaction that is inserting or deleting the same key; the caller
-- passes the batch sorted by (source, key), so that all transactions wait in one order and cannot deadlock.
-- Only the key's index arbitrates: a row whose id belongs to another event fails the whole statement.
with
inserted as (
    insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
    select new.id, new.source, new.idempotency_key, new.fingerprint, statement_timestamp(), new.headers, new.body
    from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::bytea[], $6::bytea[])
        as new (id, source, idempotency_key, fingerprint, headers, body)
    on conflict (source, idempotency_key) do nothing
    returning id, source
),
started as (
    select inserted.id, inserted.source, paused.is_so is null and lease.us is not null as claimed, lease.us * interval '1 microsecond' as lease
    from inserted
    cross join lateral (select ($8::bigint[])[array_position($7::uuid[], inserted.id)] as us) as lease
    left join lateral (select true as is_so from paused_sources where source = inserted.source limit 1) as paused on true
),
owed as (
    insert into deliveries (event_id, source, status, attempt, budget_from, fence, due_at)
    select
        id, source,
        case when claimed then 'processing' else 'queued' end,
        claimed::int, 0, claimed::int,
        statement_timestamp() + case when claimed then lease else interval '0' end
    from started
    returning event_id, status = 'processing' as claimed
)
select event_id, claimed from owed
