-- When the headers and the body of a delivered event were erased, which may be sooner than its record goes. They are
-- empty then. Adding the column rewrites nothing, and a row in which it is null is no larger than before.
alter table events add column erased_at timestamptz;
