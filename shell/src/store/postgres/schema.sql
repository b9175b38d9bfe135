-- Reads the applied migrations, and whether this session is read-only.
--
-- Bound: the number of migrations.
-- Index: the primary key of _sqlx_migrations.
-- Locks: none.
select version, checksum, success, current_setting('transaction_read_only') = 'on' as read_only
from _sqlx_migrations
order by version
