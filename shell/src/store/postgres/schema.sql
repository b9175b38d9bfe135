-- The migrations that were applied, and whether this session may write.
--
-- Bounded by: the number of migrations.
-- Locks: nothing.
select version, checksum, success, current_setting('transaction_read_only') = 'on' as read_only
from _sqlx_migrations
order by version
