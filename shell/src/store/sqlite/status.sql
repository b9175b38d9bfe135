-- Reads the status of one event, whether its payload was erased, and whether it is discarded. Returns
-- no row if there is no such event.
--
-- Bound: one event.
-- Index: the primary key of events and of deliveries.
-- Locks: the database's write lock, which the transaction holds.
select
    coalesce(owed.status, 'delivered') as status,
    event.erased_at is not null as erased,
    coalesce(owed.discarded_fence = owed.fence, false) as discarded
from events event
left join deliveries owed on owed.event_id = event.id
where event.id = ?1
