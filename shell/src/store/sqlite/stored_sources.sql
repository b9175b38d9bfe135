-- Reads the sources of all stored events, in the order of their names. They are found by stepping
-- from each to the next greater one.
--
-- Bound: one probe for each source.
-- Index: the unique index on (source, idempotency_key).
-- Locks: none. A reader does not block the writer.
with recursive stored (source) as (
    select min(source) from events
    union all
    select (select min(source) from events where source > stored.source)
    from stored
    where stored.source is not null
)
select source from stored where source is not null
