-- The sources of which nothing is claimed, until an operator resumes them. A few rows at the most.
create table paused_sources (
    source    text    not null primary key,
    paused_at integer not null
) strict, without rowid;
