-- Groups the failures of events of the source ?1 that are not delivered, by the newest attempt's
-- verdict, status code, error and first 40 bytes of the excerpt. The largest groups come first.
-- Discarded events are looked at, but in no group.
--
-- ?2: only attempts that ended at this time or later; null for all. ?3: the limit of events looked
-- at in each place. ?4: the limit of groups.
--
-- Each row says whether not all events were looked at. Without a group it is one row without an
-- example.
--
-- Bound: three range scans, each cut by ?3, and two probes of attempts for each event looked at.
-- Index: deliveries_due, deliveries_dead, and the primary key of attempts.
-- Locks: none. A reader does not block the writer.
with
dead as materialized (
    select event_id, discarded_fence is fence as is_discarded
    from deliveries
    where source = ?1 and due_at is null
    order by event_id desc
    limit ?3
),
due_first as materialized (
    select event_id from deliveries where source = ?1 and due_at is not null order by due_at limit ?3
),
due_last as materialized (
    select event_id from deliveries where source = ?1 and due_at is not null order by due_at desc limit ?3
),
looked as materialized (
    select event_id, 1 as is_dead from dead where not is_discarded
    union
    select event_id, 0 from due_first
    union
    select event_id, 0 from due_last
),
grouped as materialized (
    select
        newest.verdict,
        newest.status_code,
        newest.error,
        substr(newest.excerpt, 1, 40) as beginning,
        count(*) as events,
        sum(looked.is_dead) as dead_lettered,
        min(newest.ended_at) as first_at,
        max(newest.ended_at) as last_at,
        max(looked.event_id) as example
    from looked
    cross join attempts newest on newest.event_id = looked.event_id
        and newest.attempt = (select max(attempt) from attempts where event_id = looked.event_id)
    where newest.verdict <> 'delivered' and (?2 is null or newest.ended_at >= ?2)
    group by newest.verdict, newest.status_code, newest.error, beginning
    order by events desc, example desc
    limit ?4
)
select
    (select count(*) from dead) >= ?3 or (select count(*) from looked where is_dead = 0) >= 2 * ?3 as is_partial,
    ?1 as source,
    grouped.*
from (select 1) as always
left join grouped on true
