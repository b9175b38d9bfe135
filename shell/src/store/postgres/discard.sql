-- Discards one event: it becomes a dead letter with the mark of a discard. Records the action. Returns
-- its id. Returns nothing if the event is outside of the scope, already discarded, or changed at this
-- moment.
--
-- $2: whether waiting events are in the scope too. A row that is processing is in it once its lease
-- has ended. Its attempt is lost, and is recorded as such.
--
-- The update goes by key and fence: see settle_delivered.sql. If the row was changed while this
-- statement waited for it, nothing is written, and the caller tries again.
--
-- Bound: one row.
-- Index: deliveries_pkey, attempts_pkey, actions_pkey.
-- Locks: the row of deliveries. It may wait for a claim, a settlement or a prune of the row.
with
held as materialized (
    select event_id, fence, attempt, status = 'processing' as lost, statement_timestamp() as now
    from deliveries
    where event_id = $1
        and discarded_fence is distinct from fence
        and (status = 'dead_lettered' or $2 and (status <> 'processing' or due_at <= statement_timestamp()))
    for update
),
moved as (
    update deliveries as row
    set status = 'dead_lettered',
        fence = row.fence + 1,
        due_at = null,
        ended_at = coalesce(row.ended_at, (select now from held limit 1)),
        reason = coalesce(row.reason, 'permanent'),
        discarded_fence = row.fence + 1
    where row.event_id = any (array(select event_id from held)) and ((row.event_id, row.fence) in (select event_id, fence from held)) is true
    returning row.event_id, row.fence, row.attempt
),
recorded as (
    insert into attempts (event_id, attempt, ended_at, verdict, excerpt)
    select event_id, attempt, statement_timestamp(), 'lost', ''
    from held
    where lost and (event_id in (select event_id from moved)) is true
    on conflict (event_id, attempt) do nothing
),
noted as (
    insert into actions (event_id, fence, at, attempt, action)
    select event_id, fence, statement_timestamp(), attempt, 'discarded' from moved
    on conflict (event_id, fence) do nothing
)
select event_id from moved
