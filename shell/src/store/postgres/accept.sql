-- Inserts a batch of new events, each with the delivery that is owed for it, and answers the ids of those that were
-- new. A row whose (source, key) is there already changes nothing and is not answered.
--
-- Bounded by: the unique index events_key, one probe for each row of the batch.
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
owed as (
    insert into deliveries (event_id, source, status, attempt, budget_from, fence, due_at)
    select id, source, 'queued', 0, 0, 0, statement_timestamp()
    from inserted
)
select id from inserted
