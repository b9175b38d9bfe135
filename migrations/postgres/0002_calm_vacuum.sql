-- The vacuum of the busy table comes as often as before, and in pieces: at full speed it takes a core for seconds, for
-- which acknowledgements wait. At this pace it still goes over a hundred megabytes in some seconds.
alter table deliveries set (
    autovacuum_vacuum_cost_delay = 2,
    autovacuum_vacuum_cost_limit = 1000
);
