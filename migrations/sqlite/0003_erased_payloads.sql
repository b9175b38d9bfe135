-- When the headers and the body of a delivered event were erased, which may be sooner than its record goes. They are
-- empty then. It comes behind the bytes in a row, and is null, which is read from the row's head, or they are empty.
alter table events add column erased_at integer;
