-- Reads the state of a server: whether it is a standby, whether it is read-only, its cluster
-- identifier and its timeline.
--
-- Each promotion increases the timeline. The name of the log file that a primary writes has the
-- current timeline; shortly after a promotion the control file still has the previous one. A
-- standby writes no log. It knows the timeline of its last restart point, and the one that it has
-- replayed.
--
-- Bound: reads only the server's own state.
-- Index: none.
-- Locks: none.
select
    pg_is_in_recovery() as in_recovery,
    current_setting('transaction_read_only') = 'on' as read_only,
    (select system_identifier from pg_control_system()) as system,
    case
        when pg_is_in_recovery() then
            (select greatest(c.timeline_id, r.min_recovery_end_timeline)::bigint from pg_control_checkpoint() c, pg_control_recovery() r)
        else ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint
    end as timeline
