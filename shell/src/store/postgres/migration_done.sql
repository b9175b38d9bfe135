-- Records an applied migration: version, description, checksum, and how long it took in
-- nanoseconds.
--
-- Bound: one row.
-- Index: the primary key of _sqlx_migrations.
-- Locks: the new row.
insert into _sqlx_migrations (version, description, success, checksum, execution_time)
values ($1, $2, true, $3, $4)
