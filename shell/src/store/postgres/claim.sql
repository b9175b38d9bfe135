-- Claims due events. A demand has a source, a limit, a lease, a maximum of attempts, the due time
-- to start from, and a limit in bytes. Times are in microseconds. For each demand, the oldest due
-- events are claimed first, while their queries, headers and bodies fit into its bytes. The first
-- event that does not fit stays due, and so do those after it. Its size is returned.
--
-- A row with attempts left becomes processing, and is due again when its lease ends. A row without
-- attempts left is dead-lettered. If a row was processing, its attempt is lost, and is recorded as
-- such. Rows of a paused source are not claimed.
--
-- `pick` is materialized, because a plan that ran it twice would lock more rows than the limit. Its
-- rows are locked in their newest version. They are written by an insert that conflicts with each
-- of them: the primary key finds the row, and the planner has no join to choose a plan for. An
-- update that joins `pick` by the key may read the whole index for each claim, after a vacuum has
-- left the statistics of an empty table. The fence is compared again, and only rows that were
-- written are returned.
--
-- A lost attempt has no record yet, unless someone changed rows by hand. In that case the record
-- stays as it is: one row must not prevent the claim of all others.
--
-- Bound: one range scan for each demand, cut by its limit. Then one probe of events for each picked
-- row, and one of deliveries and of events for each claimed row. The row stores the size of a long
-- value, so only the bytes of claimed rows are read. statement_timestamp() is stable, so the scan
-- ends at the current time.
-- Index: deliveries_due for the scan; events_pkey, deliveries_pkey, attempts_pkey and
-- paused_sources_pkey for the probes.
-- Locks: the picked rows of deliveries, in the order of their due times, skipping locked rows. So
-- it never waits, and cannot deadlock.
with
demand as materialized (
    select
        asked.position, asked.source, asked.wanted, asked.lease_us * interval '1 microsecond' as lease, asked.max_attempts,
        timestamptz 'epoch' + asked.from_us * interval '1 microsecond' as due_from, asked.bytes
    from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[]) with ordinality
        as asked (source, wanted, lease_us, max_attempts, from_us, bytes, position)
    cross join lateral (
        select count(*) as number from (select from paused_sources where source = asked.source limit 1) as pause
    ) as pauses
    where pauses.number = 0
),
pick as materialized (
    select
        due.event_id,
        due.due_at,
        due.fence,
        due.attempt,
        due.budget_from,
        due.status = 'processing' as lost,
        greatest(due.attempt - due.budget_from, 0) >= demand.max_attempts as spent,
        demand.source,
        demand.lease,
        demand.position,
        demand.bytes
    from demand
    cross join lateral (
        select event_id, due_at, fence, attempt, budget_from, status
        from deliveries
        where source = demand.source and due_at >= demand.due_from and due_at <= statement_timestamp()
        order by due_at
        limit demand.wanted
        for update skip locked
    ) as due
),
weighed as materialized (
    select
        pick.*,
        coalesce(event.size, 0) as size,
        sum(coalesce(event.size, 0)) over (partition by position order by due_at, event_id rows unbounded preceding) as total
    from pick
    left join lateral (
        select octet_length(query) + octet_length(headers) + octet_length(body) as size from events where id = pick.event_id and not pick.spent limit 1
    ) as event on true
),
claimed as materialized (
    select
        *, attempt + case when spent then 0 else 1 end as next_attempt, fence + 1 as next_fence,
        case when spent then case when lost then 'lost' else 'exhausted' end end as reason,
        statement_timestamp() as now, statement_timestamp() + lease as leased_until
    from weighed
    where total <= bytes
),
moved as (
    insert into deliveries as row (event_id, source, status, attempt, budget_from, fence, due_at, ended_at, reason)
    select
        event_id, source,
        case when spent then 'dead_lettered' else 'processing' end,
        next_attempt, budget_from, next_fence,
        case when not spent then leased_until end,
        case when spent then now end,
        claimed.reason
    from claimed
    on conflict (event_id) do update
    set status = excluded.status,
        attempt = excluded.attempt,
        fence = excluded.fence,
        due_at = excluded.due_at,
        ended_at = excluded.ended_at,
        reason = excluded.reason
    where row.fence = excluded.fence - 1
    returning event_id
),
recorded as (
    insert into attempts (event_id, attempt, ended_at, verdict, excerpt)
    select event_id, attempt, statement_timestamp(), 'lost', ''
    from claimed
    where lost and (event_id in (select event_id from moved)) is true
    on conflict (event_id, attempt) do nothing
)
select
    claimed.event_id, (extract(epoch from claimed.due_at) * 1000000)::bigint as due_us, claimed.position,
    claimed.next_attempt as attempt, claimed.budget_from, claimed.next_fence as fence, claimed.reason, event.query, event.headers, event.body,
    (extract(epoch from statement_timestamp() - event.received_at) * 1000000)::bigint as age_us,
    (extract(epoch from event.received_at) * 1000000)::bigint as received_us, null::bigint as held_back
from claimed
left join lateral (
    select query, headers, body, received_at from events where id = claimed.event_id and not claimed.spent limit 1
) as event on true
where (claimed.event_id in (select event_id from moved)) is true
union all
select event_id, 0, position, 0, 0, 0, null, null, null, null, null, null, size from weighed where total > bytes and total - size <= bytes
