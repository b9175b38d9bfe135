-- Caps up to ?2 due times that are beyond the horizon of their source. ?1 is a JSON array of
-- [source, the time of its horizon, the time when its lease ends]. The fence stays, so the holder
-- of a row can still settle it.
--
-- Bound: for each source one range scan, earliest due time first, and ?2 rows in total. Usually no
-- row is beyond a horizon. One probe and one search of the array for each capped row.
-- Index: deliveries_due, the primary key of deliveries.
-- Locks: the database's write lock, which the transaction holds.
update deliveries
set due_at = (select bound.value ->> 2 from jsonb_each(?1) as bound where bound.value ->> 0 = deliveries.source)
where event_id in (
    select row.event_id
    from jsonb_each(?1) as bound
    cross join deliveries as row
    where row.source = bound.value ->> 0 and row.due_at > bound.value ->> 1
    limit ?2
)
