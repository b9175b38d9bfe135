-- Reads one event without its payload: one row for each attempt, oldest first, or one row without an
-- attempt, and then one row for each action, oldest first. It is one statement with one snapshot, so
-- an event without a row in deliveries is delivered.
--
-- Bound: one event, its attempts and its actions.
-- Index: the primary key of events, of deliveries, of attempts and of actions.
-- Locks: none. A reader does not block the writer.
select
    event.source,
    event.idempotency_key,
    event.received_at,
    owed.status,
    owed.attempt,
    owed.budget_from,
    owed.due_at,
    owed.ended_at,
    case when owed.discarded_fence = owed.fence then 'discarded' else owed.reason end as reason,
    tried.attempt as tried_attempt,
    tried.ended_at as tried_ended_at,
    tried.took_us as tried_took_us,
    tried.verdict as tried_verdict,
    tried.status_code as tried_status_code,
    tried.error as tried_error,
    tried.excerpt as tried_excerpt,
    null as acted_fence,
    null as acted_at,
    null as acted_attempt,
    null as action
from events event
left join deliveries owed on owed.event_id = event.id
left join attempts tried on tried.event_id = event.id
where event.id = ?1
union all
select
    event.source,
    event.idempotency_key,
    event.received_at,
    null, null, null, null, null, null,
    null, null, null, null, null, null, null,
    done.fence,
    done.at,
    done.attempt,
    done.action
from events event
join actions done on done.event_id = event.id
where event.id = ?1
order by acted_fence, tried_attempt -- null is first
