-- Whether the server still has a session, which is identified by its server process $1 and the
-- start of that process $2. The start is needed because the system reuses process ids.
--
-- Bound: the server's list of processes.
-- Index: none.
-- Locks: none.
select exists (
    select from pg_stat_activity where pid = $1::bigint and (extract(epoch from backend_start) * 1000000)::bigint = $2::bigint
)
