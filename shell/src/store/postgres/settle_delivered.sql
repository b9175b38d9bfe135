-- Settles claims whose events were delivered. Returns the events whose claim was still valid: their
-- rows are deleted, and their attempts are recorded if they have a verdict. For the others nothing is
-- written.
--
-- The probes are lateral and lock, and the write reads the locked rows by the primary key, so that the
-- planner has no choice. In a join by the key alone it reads the whole table when it believes that the
-- table has fewer rows than the batch. It does so after a vacuum of a nearly empty queue. The condition
-- with the array can only be answered by the primary key.
--
-- Rows are compared with the batch by `(... in (...)) is true`, which is a look-up in a hash table. A
-- join compares each row with each of the batch, because hash joins are switched off: a batch of 512
-- took up to ten times as long for each row as one of 128, and deliveries waited for it.
--
-- A row that is locked under its fence is the version that this statement's snapshot sees, because
-- each transition changes the fence. cap_due_times.sql does not change it, and someone who changes rows
-- by hand may not. Then the newest version is written. Only rows that were written are returned and
-- recorded, and the others are refused completely.
-- An attempt that has a record keeps it: see claim.sql.
--
-- Bound: one probe of deliveries for each settlement. One insert for each recorded attempt.
-- Index: deliveries_pkey, attempts_pkey.
-- Locks: the settled rows of deliveries, in the order of their ids. It may wait for a claim that
-- takes over an expired lease, and a claim never waits. The row is checked again after the wait:
-- with another fence, it is not settled.
with
input as materialized (
    select *
    from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::integer[], $7::text[], $8::bytea[])
        as settlement (event_id, fence, ended_ago_us, took_us, verdict, status_code, error, excerpt)
    order by event_id
),
held as materialized (
    select row.attempt, input.*
    from input
    cross join lateral (
        select attempt
        from deliveries
        where event_id = input.event_id and fence = input.fence and status = 'processing'
        for update
    ) as row
),
settled as (
    delete from deliveries as row
    where row.event_id = any (array(select event_id from held)) and ((row.event_id, row.fence) in (select event_id, fence from held)) is true
    returning row.event_id
),
recorded as (
    insert into attempts (event_id, attempt, ended_at, took_us, verdict, status_code, error, excerpt)
    select
        event_id, attempt, statement_timestamp() - ended_ago_us * interval '1 microsecond',
        took_us, verdict, status_code, error, excerpt
    from held
    where verdict is not null and (event_id in (select event_id from settled)) is true
    on conflict (event_id, attempt) do nothing
)
select event_id from settled
