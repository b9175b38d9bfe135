-- How often a delivered event was queued again. Null: never. Retention compares it when it locks an
-- event, because an event that was queued again since it was read must stay.
--
-- The previous version of the program does not count. While it runs beside this one during an upgrade,
-- retention does not notice that it has queued an event again within the same milliseconds.
alter table events add column redrives bigint;
