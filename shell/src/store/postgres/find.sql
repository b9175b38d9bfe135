-- Reads one event without its payload: one row for each attempt, oldest first, or one row without an
-- attempt, and then one row for each action, oldest first. It is one statement with one snapshot, so
-- an event without a row in deliveries is delivered.
--
-- Bound: one event, its attempts and its actions.
-- Index: events_pkey, deliveries_pkey, attempts_pkey, actions_pkey.
-- Locks: none.
select
    event.source,
    event.idempotency_key,
    (extract(epoch from event.received_at) * 1000000)::bigint as received_at,
    owed.status,
    owed.attempt,
    owed.budget_from,
    (extract(epoch from owed.due_at) * 1000000)::bigint as due_at,
    (extract(epoch from owed.ended_at) * 1000000)::bigint as ended_at,
    case when owed.discarded_fence = owed.fence then 'discarded' else owed.reason end as reason,
    tried.attempt as tried_attempt,
    (extract(epoch from tried.ended_at) * 1000000)::bigint as tried_ended_at,
    tried.took_us as tried_took_us,
    tried.verdict as tried_verdict,
    tried.status_code::bigint as tried_status_code,
    tried.error as tried_error,
    tried.excerpt as tried_excerpt,
    null::bigint as acted_fence,
    null::bigint as acted_at,
    null::bigint as acted_attempt,
    null::text as action
from events event
left join deliveries owed on owed.event_id = event.id
left join attempts tried on tried.event_id = event.id
where event.id = $1
union all
select
    event.source,
    event.idempotency_key,
    (extract(epoch from event.received_at) * 1000000)::bigint,
    null, null, null, null, null, null,
    null, null, null, null, null, null, null,
    done.fence,
    (extract(epoch from done.at) * 1000000)::bigint,
    done.attempt,
    done.action
from events event
join actions done on done.event_id = event.id
where event.id = $1
order by acted_fence nulls first, tried_attempt
