-- Reads whether the startup parameters of this session had an effect, from a server that has no
-- list of its sessions.
--
-- Bound: reads only a setting.
-- Index: none.
-- Locks: none.
select current_setting('surehook.session', true) as mark
