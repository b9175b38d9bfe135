-- Reads the names of the sources that are in the JSON array ?1, have work, have dead letters or are
-- paused. Sources with rows are found by stepping from each to the next greater one in both
-- indexes.
--
-- Bound: the number of sources.
-- Index: deliveries_due, deliveries_dead, and the primary key of paused_sources.
-- Locks: none. A reader does not block the writer.
with recursive
working (source) as (
    select min(source) from deliveries where due_at is not null
    union all
    select (select min(source) from deliveries where due_at is not null and source > working.source)
    from working
    where working.source is not null
),
with_dead_letters (source) as (
    select min(source) from deliveries where due_at is null
    union all
    select (select min(source) from deliveries where due_at is null and source > with_dead_letters.source)
    from with_dead_letters
    where with_dead_letters.source is not null
)
select value as source from json_each(?1)
union select source from working where source is not null
union select source from with_dead_letters where source is not null
union select source from paused_sources
