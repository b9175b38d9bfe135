-- Records every change to a row of `deliveries`, and every event that is pruned, in the transaction
-- that does it. The login role identifies the process.
create table audit (
    n        bigserial primary key,
    at_us    bigint    not null default (extract(epoch from statement_timestamp()) * 1000000)::bigint,
    process  text      not null default session_user,
    source   text      not null,
    event_id uuid      not null,
    pruned   boolean   not null default false,
    before_status text,
    before_attempt bigint,
    before_budget_from bigint,
    before_fence bigint,
    before_reason text,
    before_due_us bigint,
    after_status text,
    after_attempt bigint,
    after_budget_from bigint,
    after_fence bigint,
    after_reason text,
    after_due_us bigint
);

create function audit() returns trigger language plpgsql as $$
begin
    case tg_op
    when 'INSERT' then
        insert into audit (source, event_id, after_status, after_attempt, after_budget_from, after_fence, after_reason, after_due_us)
        values (new.source, new.event_id, new.status, new.attempt, new.budget_from, new.fence, case when new.discarded_fence = new.fence then 'discarded' else new.reason end, (extract(epoch from new.due_at) * 1000000)::bigint);
    when 'UPDATE' then
        insert into audit (source, event_id, before_status, before_attempt, before_budget_from, before_fence, before_reason, before_due_us,
                           after_status, after_attempt, after_budget_from, after_fence, after_reason, after_due_us)
        values (new.source, new.event_id, old.status, old.attempt, old.budget_from, old.fence, case when old.discarded_fence = old.fence then 'discarded' else old.reason end, (extract(epoch from old.due_at) * 1000000)::bigint,
                new.status, new.attempt, new.budget_from, new.fence, case when new.discarded_fence = new.fence then 'discarded' else new.reason end, (extract(epoch from new.due_at) * 1000000)::bigint);
    when 'DELETE' then
        insert into audit (source, event_id, before_status, before_attempt, before_budget_from, before_fence, before_reason, before_due_us)
        values (old.source, old.event_id, old.status, old.attempt, old.budget_from, old.fence, case when old.discarded_fence = old.fence then 'discarded' else old.reason end, (extract(epoch from old.due_at) * 1000000)::bigint);
    end case;
    return null;
end
$$;

create trigger audit after insert or update or delete on deliveries for each row execute function audit();

create function audit_pruned() returns trigger language plpgsql as $$
begin
    insert into audit (source, event_id, pruned) values (old.source, old.id, true);
    return null;
end
$$;

create trigger audit_pruned after delete on events for each row execute function audit_pruned();
