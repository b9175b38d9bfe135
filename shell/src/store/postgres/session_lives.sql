-- Whether the server still has a session, or a transaction of a pooled session. It is identified by
-- its server process $1 and by the start $2 of that process or of that transaction. The start is
-- needed because the system reuses process ids.
--
-- Bound: the server's list of processes.
-- Index: none.
-- Locks: none.
select exists (
    select
    from pg_stat_activity
    where pid = $1::bigint
        and $2::bigint in ((extract(epoch from backend_start) * 1000000)::bigint, (extract(epoch from xact_start) * 1000000)::bigint)
)
