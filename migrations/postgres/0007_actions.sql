-- Each redrive and each discard of an event. It is written in the transaction that changes the event, and deleted with
-- the event. The key has the fence that the action gave the event. Fences increase, so they are the order of actions.
-- Attempts with numbers greater than `attempt` came after the action.
--
-- A program of the previous version records no actions. If it deletes an event, it leaves the event's rows here. A step
-- of pruning deletes such rows: see prune.sql.
create table actions (
    event_id uuid        not null,
    fence    bigint      not null,
    at       timestamptz not null,
    attempt  bigint      not null check (attempt >= 0),
    action   text        not null check (action in ('redriven', 'redriven_by_replay', 'discarded')),
    constraint actions_pkey primary key (event_id, fence)
);
