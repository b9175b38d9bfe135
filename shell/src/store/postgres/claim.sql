-- Claims due events, for each demand (source, limit, lease, most attempts, due from when on, bytes) the oldest due first,
-- while their headers and bodies fit into the demand's bytes. The first that does not fit stays as it is, and so do those
-- behind it; its size is answered. A
-- row with attempts left becomes processing and is due again at its lease's end; a row without is dead-lettered. A
-- row that was processing has lost its attempt, which is recorded. Rows of a paused source are not claimed.
--
-- Bounded by: one range scan of deliveries_due for each demand, cut by its limit; then one probe of the primary key
-- of events for each row picked, and one of deliveries and of events for each row taken. The size of a long value is in
-- its row, so that bytes are read of rows that are taken only. statement_timestamp() is stable, so that the scan ends
-- where the future starts.
-- Locks: the rows taken, in the order in which they are due, skipping those that are locked. So it never waits, and
-- cannot deadlock.
--
-- `pick` is materialized, because a plan that ran it twice would lock more rows than were asked for. Its rows are
-- locked in their newest version. They are written by an insert that conflicts with each of them: the primary key
-- finds the row, and the planner has no join to choose a plan for. An update that joins `pick` by the key may read
-- the whole index for each claim, once a vacuum has left the statistics of an empty table. The fence is compared
-- once more, and only what was written is answered.
--
-- A lost attempt has no record yet, unless someone changed rows by hand. Then its record stays as it is: one row must
-- not keep all others from being claimed.
with
demand as materialized (
    select
        asked.position, asked.source, asked.wanted, asked.lease_us * interval '1 microsecond' as lease, asked.max_attempts,
        timestamptz 'epoch' + asked.from_us * interval '1 microsecond' as due_from, asked.bytes
    from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[]) with ordinality
        as asked (source, wanted, lease_us, max_attempts, from_us, bytes, position)
    left join lateral (select true as is_so from paused_sources where source = asked.source limit 1) as paused on true
    where paused.is_so is null
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
        select octet_length(headers) + octet_length(body) as size from events where id = pick.event_id and not pick.spent limit 1
    ) as event on true
),
claimed as materialized (
    select *, attempt + case when spent then 0 else 1 end as next_attempt, fence + 1 as next_fence
    from weighed
    where total <= bytes
),
moved as (
    insert into deliveries as row (event_id, source, status, attempt, budget_from, fence, due_at, ended_at, reason)
    select
        event_id, source,
        case when spent then 'dead_lettered' else 'processing' end,
        next_attempt, budget_from, next_fence,
        case when not spent then statement_timestamp() + lease end,
        case when spent then statement_timestamp() end,
        case when spent then case when lost then 'lost' else 'exhausted' end end
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
    claimed.next_attempt as attempt, claimed.budget_from, claimed.next_fence as fence, claimed.spent, event.headers, event.body,
    (extract(epoch from statement_timestamp() - event.received_at) * 1000000)::bigint as age_us,
    null::bigint as held_back
from claimed
left join lateral (
    select headers, body, received_at from events where id = claimed.event_id and not claimed.spent limit 1
) as event on true
where (claimed.event_id in (select event_id from moved)) is true
union all
select event_id, 0, position, 0, 0, 0, false, null, null, null, size from weighed where total > bytes and total - size <= bytes
