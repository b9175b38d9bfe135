-- The sessions for which a session waits that is about to lock a table: their server processes, names and states, and
-- for how many seconds their transactions have been open. What they execute is not read: it may hold data.
--
-- Bounded by: the server's own list of its processes.
-- Locks: nothing. It looks into the server's list of locks, which stops lock requests for some microseconds.
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
