-- The fence that a discard gave the row. A dead letter is discarded while its fence is this one, so each later
-- transition ends the discard, also one of a program of the previous version, which does not know the column. That
-- program reads the reason, which a discard leaves in a value that it knows.
alter table deliveries add column discarded_fence integer
    check (discarded_fence is not fence or status = 'dead_lettered');
