-- Whether the server still has a session: by its server process, and when that was started. A process id is given again.
--
-- Bounded by: the server's own list of its processes.
-- Locks: nothing.
select exists (
    select from pg_stat_activity where pid = $1::bigint and (extract(epoch from backend_start) * 1000000)::bigint = $2::bigint
)
