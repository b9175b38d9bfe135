-- Writes a page of the database as it is, so that the transaction's commit flushes the log.
--
-- A replay is answered from a row that an earlier process may have written and not flushed: it died in between. The flush
-- of a later commit covers the whole log before it, but a transaction that changes nothing flushes nothing. An update to
-- the same values would change nothing either; the version number that SQLite keeps for applications, which is not used
-- here, is always written.
--
-- Bounded by: one page.
pragma user_version = 0
