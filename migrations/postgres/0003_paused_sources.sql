-- The sources of which nothing is claimed, until an operator resumes them. A few rows at the most.
create table paused_sources (
    source    text        not null,
    paused_at timestamptz not null,
    constraint paused_sources_pkey primary key (source)
);
