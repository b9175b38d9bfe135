-- Each redrive and each discard of an event. It is written in the transaction that changes the event, and deleted with
-- the event. The key has the fence that the action gave the event. Fences increase, so they are the order of actions.
-- Attempts with numbers greater than `attempt` came after the action.
create table actions (
    event_id blob    not null check (length(event_id) = 16),
    fence    integer not null,
    at       integer not null,
    attempt  integer not null check (attempt >= 0),
    action   text    not null check (action in ('redriven', 'redriven_by_replay', 'discarded')),
    primary key (event_id, fence)
) strict, without rowid;
