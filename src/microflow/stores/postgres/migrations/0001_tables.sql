-- Everything of microflow's lives in the schema `microflow`; several services may share it, and the outbox is everybody's.

create table microflow.identity (
    id integer primary key check (id = 1),
    database_id text not null,
    cluster_id text
);

insert into microflow.identity (id, database_id) values (1, replace(gen_random_uuid()::text, '-', ''));

-- The names of handlers, so that a claim repeats a small number instead.
create table microflow.handlers (
    id integer generated always as identity primary key,
    service text not null,
    name text not null,
    unique (service, name)
);

-- Which handlers a service has, whatever the process. Every transaction checks the version, which grows with them.
create table microflow.registries (
    service text primary key,
    version integer not null
);

-- What triggers a handler. `since`: the offset of each partition from which it is read.
create table microflow.triggers (
    handler integer not null,
    topic text not null,
    type text not null,
    since jsonb not null,
    registered_at timestamptz not null,
    primary key (handler, topic, type)
);

-- The processes that live until an instant, and their handlers with their triggers.
create table microflow.processes (
    service text not null,
    owner text not null,
    until timestamptz not null,
    handlers jsonb not null,
    primary key (service, owner)
) with (fillfactor = 50);

create table microflow.renamed (
    service text not null,
    name text not null,
    new_name text not null,
    renamed_at timestamptz not null,
    primary key (service, name)
);

create table microflow.partitions (
    id integer generated always as identity primary key,
    service text not null,
    topic text not null,
    number integer not null,
    epoch bigint not null default 0,
    owner text,
    left_epoch bigint, -- the last epoch whose owner has left in good order
    careful_until bigint,
    unique (service, topic, number)
);

-- An event that is alone in hand (`in_hand`), or was when its process ended: so often (`crashes`). `partition` is the
-- one under whose epoch it is handled, `number` and `offset` say where its record stands in that topic.
create table microflow.suspects (
    partition integer not null,
    number integer not null,
    "offset" bigint not null,
    crashes integer not null default 0,
    in_hand boolean not null default true,
    primary key (partition, number, "offset")
);

-- A table of their own: they change with every transaction, the epochs with every rebalance.
create table microflow.watermarks (
    partition integer primary key,
    watermark bigint not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- One row for each handler and event, for as long as the retention: about 120 bytes with its indexes. No foreign keys:
-- what they refer to is never deleted, and checking costs more than the insert.
create table microflow.inbox (
    "offset" bigint not null,
    completed_at timestamptz,
    handler integer not null,
    partition integer not null,
    status smallint not null, -- 0 done, 1 parked, 2 dead
    digest bytea not null,
    content bytea not null,
    primary key (handler, digest)
);

create index inbox_completed on microflow.inbox (partition, completed_at) where completed_at is not null;

-- `sequence` is the place in the order of a key. `free`: no row that it waits for stands before it (see parking.sql).
create table microflow.parked (
    sequence bigint generated always as identity primary key,
    "offset" bigint not null,
    due timestamptz,
    first_failed_at timestamptz,
    "timestamp" timestamptz,
    handler integer not null,
    partition integer not null,
    attempt integer not null,
    ordering smallint not null, -- 0 none, 1 handler, 2 key
    free boolean not null default false,
    service text not null,
    topic text not null,
    key bytea,
    digest bytea not null,
    content bytea not null,
    error text not null,
    headers bytea not null,
    value bytea,
    unique (handler, digest)
);

create index parked_next on microflow.parked (partition, due, sequence) where free and due is not null;
create index parked_key on microflow.parked (service, topic, key, sequence, digest)
where ordering = 2 and key is not null;
create index parked_handler on microflow.parked (service, topic, key, handler, sequence)
where ordering = 1 and key is not null;
create index parked_waiting on microflow.parked (service, topic, key, sequence) where not free and key is not null;

create table microflow.dead_letters (
    id bigint generated always as identity primary key,
    "offset" bigint not null,
    first_failed_at timestamptz not null,
    failed_at timestamptz not null,
    "timestamp" timestamptz,
    handler integer not null,
    partition integer not null,
    attempts integer not null,
    state smallint not null, -- 0 dead, 1 redriving, 2 done
    ordering smallint not null,
    service text not null,
    key bytea,
    digest bytea not null,
    content bytea not null,
    reason text not null,
    error text not null,
    trace text not null,
    headers bytea not null,
    value bytea,
    unique (handler, digest)
);

create index dead_letters_service on microflow.dead_letters (service, id);
create index dead_letters_failed on microflow.dead_letters (service, failed_at);

-- Rows come and go at once. A position is taken after the lock on its key and kept until the commit, so within a key
-- positions grow in commit order; between keys they need not. `spread` is the same for all rows of a topic and key: it
-- finds them, and its lowest six bits are the shard. `publisher`: who publishes the row from memory. `partition`: where
-- it goes, if its key does not say it.
create table microflow.outbox (
    position bigint generated always as identity (cache 1) primary key,
    created_at timestamptz not null,
    publisher bigint,
    spread integer generated always as (
        (hashtextextended(topic || ' ' || coalesce(encode(key, 'hex'), position::text), 0) & 2147483647)::integer
    ) stored,
    partition integer,
    service text not null,
    topic text not null,
    key bytea,
    headers bytea not null,
    value bytea
) with (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
    -- Shortening the file would lock everybody out, and it grows again at once.
    vacuum_truncate = false, toast.vacuum_truncate = false
);

create index outbox_spread on microflow.outbox (spread);

-- To compress what lives for milliseconds is wasted.
alter table microflow.outbox alter column headers set storage external, alter column value set storage external;

-- How many partitions of a topic are used by those who publish this outbox, whatever the log has by now.
create table microflow.partition_counts (
    topic text primary key,
    partitions integer not null
);

create table microflow.shards (
    shard smallint primary key,
    owner text,
    until timestamptz
) with (fillfactor = 50);

insert into microflow.shards (shard) select generate_series(0, 63);

-- Who asks for shards, so that each knows its fair share of them.
create table microflow.relays (
    owner text primary key,
    until timestamptz not null
) with (fillfactor = 50);

-- The migrations of the services' own tables.
create table microflow.migrations (
    service text not null,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null,
    primary key (service, name)
);

create table microflow.probe (
    id integer primary key check (id = 1),
    content bytea
);
