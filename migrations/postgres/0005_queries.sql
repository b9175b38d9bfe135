-- The query of the posted URL, as bytes, without the question mark; empty if there was none. It is erased with the
-- headers and the body. The default is stored once for all old rows, so adding the column rewrites nothing, and a
-- program of the previous version can still insert.
alter table events add column query bytea not null default '';
