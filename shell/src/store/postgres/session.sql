-- Which session this is: its server process, and when that was started, in microseconds since 1970.
--
-- Bounded by: the server's own list of its processes.
-- Locks: nothing.
select pid::bigint as pid, (extract(epoch from backend_start) * 1000000)::bigint as started
from pg_stat_activity
where pid = pg_backend_pid()
