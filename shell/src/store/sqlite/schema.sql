-- The migrations that were applied.
--
-- Bounded by: the number of migrations.
select version, checksum, success from _sqlx_migrations order by version
