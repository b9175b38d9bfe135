-- Three tables: what came in, what is owed, what was tried. The same as PostgreSQL's, in SQLite's types: ids are the
-- 16 bytes of the UUID, times are microseconds since 1970 in UTC.

-- What came in. Inserted once, never updated, deleted by retention. The bytes come last, so that a row is judged
-- without reading them.
create table events (
    id              blob    not null primary key check (length(id) = 16),
    source          text    not null,
    idempotency_key text    not null,
    fingerprint     blob    not null check (length(fingerprint) = 32),
    received_at     integer not null,
    headers         blob    not null,
    body            blob    not null,
    unique (source, idempotency_key)
) strict;

-- What is owed. An event has a row from the moment it is accepted until it is delivered; a dead letter's row stays.
-- An event without a row here is delivered, and its last attempt says when.
--
-- due_at is both the schedule and the lease, and null once nothing is due any more. Each transition moves the fence
-- by one.
create table deliveries (
    event_id    blob    not null primary key check (length(event_id) = 16),
    due_at      integer,
    ended_at    integer,
    attempt     integer not null check (attempt >= 0),
    budget_from integer not null check (budget_from >= 0),
    fence       integer not null,
    source      text    not null,
    status      text    not null check (status in ('queued', 'processing', 'retrying', 'dead_lettered')),
    reason      text    check (reason in ('permanent', 'exhausted', 'lost')),
    check ((due_at is null) = (status = 'dead_lettered')),
    check ((ended_at is not null) = (status = 'dead_lettered')),
    check ((reason is not null) = (status = 'dead_lettered'))
) strict, without rowid;

-- The claim's one range scan.
create index deliveries_due on deliveries (source, due_at) where due_at is not null;

-- Dead letters, newest last.
create index deliveries_dead on deliveries (source, event_id) where due_at is null;

-- What was tried. Appended when an attempt is settled or found to be lost; deleted with its event.
-- An attempt started at ended_at - took_us. What is lost has no took_us: nobody knows.
create table attempts (
    event_id    blob    not null check (length(event_id) = 16),
    attempt     integer not null check (attempt >= 0),
    ended_at    integer not null,
    took_us     integer check (took_us >= 0),
    status_code integer,
    verdict     text    not null check (verdict in ('delivered', 'transient', 'permanent', 'lost')),
    error       text,
    excerpt     blob    not null,
    primary key (event_id, attempt)
) strict, without rowid;
