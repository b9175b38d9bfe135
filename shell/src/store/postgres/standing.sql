-- What a server is: a standby or not, writable or not, and how far its cluster's history has come.
--
-- A timeline is raised by each promotion. The one that is written to is in the name of its log file; the control file
-- of a server that was promoted just now still has the one before. A standby writes to none, and knows what its last
-- restart point had and what it has replayed.
--
-- Bounded by: nothing is read but the server's own state.
-- Locks: nothing.
select
    pg_is_in_recovery() as in_recovery,
    current_setting('transaction_read_only') = 'on' as read_only,
    (select system_identifier from pg_control_system()) as system,
    case
        when pg_is_in_recovery() then
            (select greatest(c.timeline_id, r.min_recovery_end_timeline)::bigint from pg_control_checkpoint() c, pg_control_recovery() r)
        else ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint
    end as timeline
