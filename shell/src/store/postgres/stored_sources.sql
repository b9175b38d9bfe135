-- Reads the sources of all stored events, in the order of their names. They are found by stepping
-- from each to the next greater one.
--
-- Bound: one probe for each source.
-- Index: events_key.
-- Locks: none.
with recursive stored (source) as (
    (select source from events where source >= '' order by source, idempotency_key limit 1)
    union all
    select next.source
    from stored
    cross join lateral (
        select source from events where source > stored.source order by source, idempotency_key limit 1
    ) as next
)
select source from stored
