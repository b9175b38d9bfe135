-- Reads the state of a server that does not report its cluster identifier and its timeline: only
-- whether it is a standby, and whether it is read-only. Some managed databases withhold the functions
-- that standing.sql needs.
--
-- Bound: reads only the server's own state.
-- Index: none.
-- Locks: none.
select
    pg_is_in_recovery() as in_recovery,
    current_setting('transaction_read_only') = 'on' as read_only,
    0::bigint as system,
    0::bigint as timeline
