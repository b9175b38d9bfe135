-- The fence that a discard gave the row. A dead letter is discarded while its fence is this one, so each later
-- transition ends the discard, also one of a program of the previous version, which does not know the column. That
-- program reads the reason, which a discard leaves in a value that it knows.
--
-- Adding the column rewrites nothing. The check is not validated: it holds for all old rows, in which the column is null,
-- and to validate it would read them all.
alter table deliveries add column discarded_fence bigint;
alter table deliveries add constraint deliveries_discarded_when_dead
    check (discarded_fence is distinct from fence or status = 'dead_lettered') not valid;
