-- The query of the posted URL, as bytes, without the question mark; empty if there was none. It is erased with the
-- headers and the body. It comes behind the bytes in a row, and is read only with them; its length is in the row's head.
alter table events add column query blob not null default x'';
