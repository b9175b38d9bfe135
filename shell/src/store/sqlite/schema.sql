-- Reads the applied migrations.
--
-- Bound: the number of migrations.
-- Index: the primary key of _sqlx_migrations.
-- Locks: none, except those of its transaction.
select version, checksum, success from _sqlx_migrations order by version
