-- Reads one event without its payload: one row for each attempt, oldest first, or one row
-- without an attempt. It is one statement with one snapshot, so an event without a row in
-- deliveries is delivered.
--
-- Bound: one event and its attempts.
-- Index: the primary key of events, of deliveries and of attempts.
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
    tried.excerpt as tried_excerpt
from events event
left join deliveries owed on owed.event_id = event.id
left join attempts tried on tried.event_id = event.id
where event.id = ?1
order by tried.attempt
