-- Settles a batch of claims. Returns the events whose claim was still valid. Each of them is
-- deleted (delivered), rescheduled or dead-lettered, and its attempt is recorded if it has a
-- verdict. For the others nothing is written.
--
-- The probes are lateral and lock, and the writes go by ctid, so that the planner has no choice. In
-- a join by the key it reads the whole table when it believes that the table has fewer rows than
-- the batch. It does so after a vacuum of a nearly empty queue.
--
-- A row that is locked under its fence is the version that this statement's snapshot sees, because
-- each transition changes the fence. So its ctid is the right one. cap_due_times.sql does not change
-- the fence, and someone who changes rows by hand may not. The row is then locked in a version that
-- this statement cannot write. So only rows that were written are returned and recorded, and the
-- others are refused completely. The store runs this statement again for what was refused: its new
-- snapshot sees that version.
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
    from unnest(
        $1::uuid[], $2::bigint[], $3::text[], $4::bigint[], $5::text[],
        $6::bigint[], $7::bigint[], $8::text[], $9::integer[], $10::text[], $11::bytea[]
    ) as settlement (
        event_id, fence, outcome, after_us, reason,
        ended_ago_us, took_us, verdict, status_code, error, excerpt
    )
    order by event_id
),
held as materialized (
    select
        row.place, row.attempt, statement_timestamp() as now,
        statement_timestamp() + input.after_us * interval '1 microsecond' as due, input.*
    from input
    cross join lateral (
        select ctid as place, attempt
        from deliveries
        where event_id = input.event_id and fence = input.fence and status = 'processing'
        for update
    ) as row
),
taken as materialized (select * from held where outcome = 'delivered'),
other as materialized (select * from held where outcome <> 'delivered'),
delivered as (
    delete from deliveries as row
    using taken
    where row.ctid = any (array(select place from taken)) and row.ctid = taken.place
    returning
        taken.event_id, taken.attempt, taken.ended_ago_us,
        taken.took_us, taken.verdict, taken.status_code, taken.error, taken.excerpt
),
moved as (
    update deliveries as row
    set status = case other.outcome
            when 'retry' then 'retrying'
            when 'dead_letter' then 'dead_lettered'
            when 'release' then case when row.attempt - 1 <= row.budget_from then 'queued' else 'retrying' end
            when 'cut_off' then case when row.attempt <= row.budget_from + 1 then 'queued' else 'retrying' end
        end,
        attempt = case other.outcome when 'release' then greatest(row.attempt - 1, 0) else row.attempt end,
        budget_from = case other.outcome when 'cut_off' then row.budget_from + 1 else row.budget_from end,
        fence = row.fence + 1,
        due_at = case when other.outcome <> 'dead_letter' then other.due end,
        ended_at = case when other.outcome = 'dead_letter' then other.now end,
        reason = other.reason
    from other
    where row.ctid = any (array(select place from other)) and row.ctid = other.place
    returning
        other.event_id, other.attempt, other.ended_ago_us,
        other.took_us, other.verdict, other.status_code, other.error, other.excerpt
),
settled as materialized (select * from delivered union all select * from moved),
recorded as (
    insert into attempts (event_id, attempt, ended_at, took_us, verdict, status_code, error, excerpt)
    select
        event_id, attempt, statement_timestamp() - ended_ago_us * interval '1 microsecond',
        took_us, verdict, status_code, error, excerpt
    from settled
    where verdict is not null
    on conflict (event_id, attempt) do nothing
)
select event_id from settled
