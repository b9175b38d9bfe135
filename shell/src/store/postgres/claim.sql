-- Claims due events, for each demand (source, limit, lease, most attempts, due from when on) the oldest due first. A
-- row with attempts left becomes processing and is due again at its lease's end; a row without is dead-lettered. A
-- row that was processing has lost its attempt, which is recorded. Of a paused source nothing is claimed.
--
-- Bounded by: one range scan of deliveries_due for each demand, cut by its limit; then one probe of the primary key
-- of deliveries and of events for each row taken. statement_timestamp() is stable, so that the scan ends where the
-- future starts.
-- Locks: the rows taken, in the order in which they are due, skipping those that are locked. So it never waits, and
-- cannot deadlock.
--
-- `pick` is materialized, because a plan that ran it twice would lock more rows than were asked for. The update joins
-- on the key and the fence alone: with a condition on the status or the due time there, the planner may scan the
-- index of due rows once for each row picked. A row that was moved on by a transaction that this statement's
-- snapshot does not see is locked with its new fence, does not join, and is left for the next claim.
--
-- An attempt that is lost was not recorded before, unless somebody changed rows by hand. Then its record stays as it is:
-- one row must not keep all others from being claimed.
with
demand as materialized (
    select
        asked.position, asked.source, asked.wanted, asked.lease_us * interval '1 microsecond' as lease, asked.max_attempts,
        timestamptz 'epoch' + asked.from_us * interval '1 microsecond' as due_from
    from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[]) with ordinality
        as asked (source, wanted, lease_us, max_attempts, from_us, position)
    left join lateral (select true as is_so from paused_sources where source = asked.source limit 1) as paused on true
    where paused.is_so is null
),
pick as materialized (
    select
        due.event_id,
        due.due_at,
        due.fence,
        due.attempt,
        due.status = 'processing' as lost,
        greatest(due.attempt - due.budget_from, 0) >= demand.max_attempts as spent,
        demand.lease,
        demand.position
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
moved as (
    update deliveries as row
    set status = case when pick.spent then 'dead_lettered' else 'processing' end,
        attempt = row.attempt + case when pick.spent then 0 else 1 end,
        fence = row.fence + 1,
        due_at = case when not pick.spent then statement_timestamp() + pick.lease end,
        ended_at = case when pick.spent then statement_timestamp() end,
        reason = case when pick.spent then case when pick.lost then 'lost' else 'exhausted' end end
    from pick
    where row.event_id = pick.event_id and row.fence = pick.fence
    returning
        row.event_id, row.attempt, row.budget_from, row.fence,
        pick.position, pick.spent, pick.lost, pick.attempt as lost_attempt, pick.due_at as was_due_at
),
recorded as (
    insert into attempts (event_id, attempt, ended_at, verdict, excerpt)
    select event_id, lost_attempt, statement_timestamp(), 'lost', ''
    from moved
    where lost
    on conflict (event_id, attempt) do nothing
)
select
    moved.event_id, (extract(epoch from moved.was_due_at) * 1000000)::bigint as due_us, moved.position,
    moved.attempt, moved.budget_from, moved.fence, moved.spent, event.headers, event.body,
    (extract(epoch from statement_timestamp() - event.received_at) * 1000000)::bigint as age_us
from moved
left join lateral (select headers, body, received_at from events where id = moved.event_id and not moved.spent limit 1) as event on true
