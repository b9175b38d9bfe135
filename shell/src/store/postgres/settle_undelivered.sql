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
        row.attempt, statement_timestamp() as now,
        statement_timestamp() + input.after_us * interval '1 microsecond' as due, input.*
    from input
    cross join lateral (
        select attempt
        from deliveries
        where event_id = input.event_id and fence = input.fence and status = 'processing'
        for update
    ) as row
),
settled as (
    update deliveries as row
    set status = case held.outcome
            when 'retry' then 'retrying'
            when 'dead_letter' then 'dead_lettered'
            when 'release' then case when row.attempt - 1 <= row.budget_from then 'queued' else 'retrying' end
            when 'cut_off' then case when row.attempt <= row.budget_from + 1 then 'queued' else 'retrying' end
        end,
        attempt = case held.outcome when 'release' then greatest(row.attempt - 1, 0) else row.attempt end,
        budget_from = case held.outcome when 'cut_off' then row.budget_from + 1 else row.budget_from end,
        fence = row.fence + 1,
        due_at = case when held.outcome <> 'dead_letter' then held.due end,
        ended_at = case when held.outcome = 'dead_letter' then held.now end,
        reason = held.reason
    from held
    where row.event_id = any (array(select event_id from held)) and row.event_id = held.event_id and row.fence = held.fence
    returning
        held.event_id, held.attempt, held.ended_ago_us,
        held.took_us, held.verdict, held.status_code, held.error, held.excerpt
),
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
