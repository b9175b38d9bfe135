-- Reads the sessions that block the session $1, which waits for the lock of a table: server
-- process, name, role, state, and for how many seconds the transaction has been open. The statement
-- of a session is not read, because it may contain data.
--
-- Bound: the server's list of processes. At most five rows are returned.
-- Index: none.
-- Locks: none. pg_blocking_pids reads the server's list of locks, which stops lock requests for
-- some microseconds.
select
    pid::bigint as pid,
    nullif(application_name, '') as name,
    usename::text as role,
    state,
    extract(epoch from clock_timestamp() - xact_start)::bigint as open_for
from pg_stat_activity
where pid = any (pg_blocking_pids($1::int))
order by xact_start
limit 5
