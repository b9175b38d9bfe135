-- Three tables: what came in, what is owed, what was tried.
--
-- There are no foreign keys. A key's check would lock the event's row for each attempt that is written, and the
-- statements that write two tables are each one transaction anyhow.

-- What came in. Inserted once, never updated, deleted by retention.
create table events (
    id              uuid        not null,
    source          text        not null,
    idempotency_key text        not null,
    fingerprint     bytea       not null check (octet_length(fingerprint) = 32),
    received_at     timestamptz not null,
    headers         bytea       not null,
    body            bytea       not null,
    constraint events_pkey primary key (id),
    constraint events_key unique (source, idempotency_key)
);

-- What is owed. An event has a row from the moment it is accepted until it is delivered; a dead letter's row stays.
-- An event without a row here is delivered, and its last attempt says when.
--
-- due_at is both the schedule and the lease, and null once nothing is due any more. Each transition moves the fence
-- by one. Every update moves due_at, which is indexed, so none can be heap-only; the free space of a page still
-- keeps an event's versions together, and the vacuum is eager because dead index entries are what slows a claim.
create table deliveries (
    event_id    uuid        not null,
    due_at      timestamptz,
    ended_at    timestamptz,
    attempt     bigint      not null check (attempt >= 0),
    budget_from bigint      not null check (budget_from >= 0),
    fence       bigint      not null,
    source      text        not null,
    status      text        not null check (status in ('queued', 'processing', 'retrying', 'dead_lettered')),
    reason      text        check (reason in ('permanent', 'exhausted', 'lost')),
    constraint deliveries_pkey primary key (event_id),
    constraint deliveries_due_until_dead check ((due_at is null) = (status = 'dead_lettered')),
    constraint deliveries_ended_when_dead check ((ended_at is not null) = (status = 'dead_lettered')),
    constraint deliveries_reason_when_dead check ((reason is not null) = (status = 'dead_lettered'))
) with (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_analyze_threshold = 500
);

-- The claim's one range scan.
create index deliveries_due on deliveries (source, due_at) where due_at is not null;

-- Dead letters, newest last.
create index deliveries_dead on deliveries (source, event_id) where due_at is null;

-- What was tried. Appended when an attempt is settled or found to be lost; deleted with its event.
-- An attempt started at ended_at - took_us. What is lost has no took_us: nobody knows.
create table attempts (
    event_id    uuid        not null,
    attempt     bigint      not null check (attempt >= 0),
    ended_at    timestamptz not null,
    took_us     bigint      check (took_us >= 0),
    status_code integer,
    verdict     text        not null check (verdict in ('delivered', 'transient', 'permanent', 'lost')),
    error       text,
    excerpt     bytea       not null,
    constraint attempts_pkey primary key (event_id, attempt)
);
