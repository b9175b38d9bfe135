-- Reads what holds the oldest snapshot of the server, if it has held it for at least $1 microseconds:
-- name, role, state, server process, and for how many seconds. The server keeps all rows that this
-- snapshot can still see. It can be of a session of this database, of a standby that reports its
-- queries, of a prepared transaction, or of a replication slot without a standby; for the last one
-- the time is unknown. The statement of a session is not read, because it may contain data.
--
-- Bound: the server's lists of processes, of prepared transactions and of replication slots.
-- Index: none.
-- Locks: none.
select name, role, state, pid, held_for
from (
    select
        coalesce(nullif(application_name, ''), backend_type) as name,
        usename::text as role,
        state,
        pid::bigint as pid,
        coalesce(xact_start, backend_start) as since
    from pg_stat_activity
    where backend_xmin is not null and (datname is null or datname = current_database())
    union all
    select 'prepared transaction ' || gid, owner::text, 'prepared', null, prepared
    from pg_prepared_xacts
    where database = current_database()
    union all
    select 'replication slot ' || slot_name::text, null, 'without a standby', null, null
    from pg_replication_slots
    where xmin is not null and not active
) as holder
cross join lateral (select extract(epoch from clock_timestamp() - since)::bigint as held_for) as age
where held_for is null or held_for * 1000000 >= $1::bigint
order by since nulls first
limit 1
