-- Where one event stands, and whether its payload was erased; no row if there is no such event.
--
-- Bounded by: the primary keys of events and deliveries.
select coalesce(owed.status, 'delivered') as status, event.erased_at is not null as erased
from events event
left join deliveries owed on owed.event_id = event.id
where event.id = ?1
