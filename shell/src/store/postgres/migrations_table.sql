-- Creates the table of the applied migrations, with the columns that sqlx's own migrator gives it:
-- sqlx created it in databases of earlier versions.
--
-- Bound: one table.
-- Index: none.
-- Locks: the name of the table. The caller holds the migration lock, so no other process creates it
-- at the same time.
create table if not exists _sqlx_migrations (
    version bigint primary key,
    description text not null,
    installed_on timestamptz not null default now(),
    success boolean not null,
    checksum bytea not null,
    execution_time bigint not null
)
