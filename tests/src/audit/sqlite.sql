-- Records every change to a row of `deliveries`, and every event that is pruned, in the transaction
-- that does it. SQLite's clock in SQL counts milliseconds. The time is rounded up, so that no event
-- seems to be claimed before it was due.
create table audit (
    n        integer primary key,
    at_us    integer not null default (cast(unixepoch('subsec') * 1000 as integer) * 1000 + 1000),
    process  text    not null default '$process',
    source   text    not null,
    event_id blob    not null,
    pruned   boolean not null default false,
    before_status text,
    before_attempt integer,
    before_budget_from integer,
    before_fence integer,
    before_reason text,
    before_due_us integer,
    after_status text,
    after_attempt integer,
    after_budget_from integer,
    after_fence integer,
    after_reason text,
    after_due_us integer
);

create trigger audit_insert after insert on deliveries begin
    insert into audit (source, event_id, after_status, after_attempt, after_budget_from, after_fence, after_reason, after_due_us)
    values (new.source, new.event_id, new.status, new.attempt, new.budget_from, new.fence, case when new.discarded_fence = new.fence then 'discarded' else new.reason end, new.due_at);
end;

create trigger audit_update after update on deliveries begin
    insert into audit (source, event_id, before_status, before_attempt, before_budget_from, before_fence, before_reason, before_due_us,
                       after_status, after_attempt, after_budget_from, after_fence, after_reason, after_due_us)
    values (new.source, new.event_id, old.status, old.attempt, old.budget_from, old.fence, case when old.discarded_fence = old.fence then 'discarded' else old.reason end, old.due_at,
            new.status, new.attempt, new.budget_from, new.fence, case when new.discarded_fence = new.fence then 'discarded' else new.reason end, new.due_at);
end;

create trigger audit_delete after delete on deliveries begin
    insert into audit (source, event_id, before_status, before_attempt, before_budget_from, before_fence, before_reason, before_due_us)
    values (old.source, old.event_id, old.status, old.attempt, old.budget_from, old.fence, case when old.discarded_fence = old.fence then 'discarded' else old.reason end, old.due_at);
end;

create trigger audit_pruned after delete on events begin
    insert into audit (source, event_id, pruned) values (old.source, old.id, true);
end;
