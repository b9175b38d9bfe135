-- Settles claims whose events were not delivered. Returns the events whose claim was still valid: each
-- of them is rescheduled or dead-lettered, and its attempt is recorded if it has a verdict. For the
-- others nothing is written. See settle_delivered.sql: it is a separate statement, because some
-- databases refuse two changes of one table in one statement.
--
-- Bound: one probe of deliveries for each settlement. One insert for each recorded attempt.
-- Index: deliveries_pkey, attempts_pkey.
-- Locks: as settle_delivered.sql.
with
input as materialized (
    select *
    from unnest(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[],
        $6::integer[], $7::text[], $8::bytea[], $9::text[], $10::bigint[], $11::text[]
    ) as settlement (
        event_id, fence, ended_ago_us, took_us, verdict,
        status_code, error, excerpt, outcome, after_us, reason
    )
    order by event_id
),
held as materialized (
    select
        row.source, row.attempt, row.budget_from, statement_timestamp() as now,
        statement_timestamp() + input.after_us * interval '1 microsecond' as due, input.*
    from input
    cross join lateral (
        select source, attempt, budget_from
        from deliveries
        where event_id = input.event_id and fence = input.fence and status = 'processing'
        for update
    ) as row
),
settled as (
    insert into deliveries as row (event_id, source, status, attempt, budget_from, fence, due_at, ended_at, reason)
    select
        event_id, source,
        case outcome
            when 'retry' then 'retrying'
            when 'dead_letter' then 'dead_lettered'
            when 'release' then case when attempt - 1 <= budget_from then 'queued' else 'retrying' end
            when 'cut_off' then case when attempt <= budget_from + 1 then 'queued' else 'retrying' end
        end,
        case outcome when 'release' then greatest(attempt - 1, 0) else attempt end,
        case outcome when 'cut_off' then budget_from + 1 else budget_from end,
        fence + 1,
        case when outcome <> 'dead_letter' then due end,
        case when outcome = 'dead_letter' then now end,
        reason
    from held
    on conflict (event_id) do update
    set status = excluded.status,
        attempt = excluded.attempt,
        budget_from = excluded.budget_from,
        fence = excluded.fence,
        due_at = excluded.due_at,
        ended_at = excluded.ended_at,
        reason = excluded.reason
    where row.fence = excluded.fence - 1
    returning event_id
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
