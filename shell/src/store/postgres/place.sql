-- Reads in which schema a first migration creates its tables, whether this role may do that, and
-- which of the tables named in $1 exist there already. The schema is null if this role can use none
-- of its search_path.
--
-- Bound: the number of names.
-- Index: those of the system catalog.
-- Locks: none.
select
    quote_ident(current_user::text) as role,
    quote_ident(current_schema()::text) as schema,
    coalesce(has_schema_privilege(current_schema()::text, 'create'), false) as may_create,
    array(
        select name
        from unnest($1::text[]) as name
        where to_regclass(quote_ident(current_schema()::text) || '.' || quote_ident(name)) is not null
    ) as tables
