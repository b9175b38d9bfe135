-- Reads the identity of this session: its server process, and the start of that process in
-- microseconds since 1970. Also reads whether its startup parameters had an effect.
--
-- Bound: the server's list of processes.
-- Index: none.
-- Locks: none.
select
    pid::bigint as pid,
    (extract(epoch from backend_start) * 1000000)::bigint as started,
    current_setting('surehook.session', true) as mark
from pg_stat_activity
where pid = pg_backend_pid()
