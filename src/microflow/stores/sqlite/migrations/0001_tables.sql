-- Instants are microseconds since 1970 in UTC. Several services may share these tables, and the outbox is everybody's.

create table microflow_identity (
    id integer primary key check (id = 1),
    database_id text not null,
    cluster_id text
);

insert into microflow_identity (id, database_id) values (1, lower(hex(randomblob(16))));

-- The names of handlers, so that a claim repeats a small number instead. `registered`: the service said it has it.
create table microflow_handlers (
    id integer primary key,
    service text not null,
    name text not null,
    registered integer not null default 0,
    unique (service, name)
);

create table microflow_partitions (
    id integer primary key,
    service text not null,
    topic text not null,
    number integer not null,
    epoch integer not null default 0,
    owner text,
    watermark integer,
    unique (service, topic, number)
);

-- One row for each handler and event, for as long as the retention: about 70 bytes with its index. No foreign keys:
-- what they refer to is never deleted, and checking costs more than the insert.
create table microflow_inbox (
    handler integer not null,
    digest blob not null,
    status integer not null, -- 0 done, 1 parked, 2 dead
    content blob not null,
    partition integer not null,
    "offset" integer not null,
    completed_at integer,
    primary key (handler, digest)
) without rowid;

create index microflow_inbox_completed on microflow_inbox (partition, completed_at) where completed_at is not null;

-- `sequence` is the place in the order of a key. `free`: no row that it waits for stands before it (see parking.sql).
create table microflow_parked (
    sequence integer primary key autoincrement,
    handler integer not null,
    digest blob not null,
    service text not null,
    topic text not null,
    "key" blob,
    partition integer not null,
    ordering integer not null, -- 0 none, 1 handler, 2 key
    free integer not null,
    due integer,
    attempt integer not null,
    first_failed_at integer,
    content blob not null,
    "offset" integer not null,
    "timestamp" integer,
    error text not null,
    headers blob not null,
    value blob,
    unique (handler, digest)
);

create index microflow_parked_next on microflow_parked (partition, due, sequence) where free = 1 and due is not null;

create index microflow_parked_key on microflow_parked (service, topic, "key", sequence, digest)
where ordering = 2 and "key" is not null;

create index microflow_parked_handler on microflow_parked (service, topic, "key", handler, sequence)
where ordering = 1 and "key" is not null;

create index microflow_parked_waiting on microflow_parked (service, topic, "key", free, sequence)
where "key" is not null;

create table microflow_dead_letters (
    id integer primary key autoincrement,
    service text not null,
    handler integer not null,
    digest blob not null,
    state integer not null, -- 0 dead, 1 redriving, 2 done
    partition integer not null,
    "key" blob,
    ordering integer not null,
    reason text not null,
    attempts integer not null,
    first_failed_at integer not null,
    failed_at integer not null,
    content blob not null,
    "offset" integer not null,
    "timestamp" integer,
    error text not null,
    trace text not null,
    headers blob not null,
    value blob,
    unique (handler, digest)
);

create index microflow_dead_letters_service on microflow_dead_letters (service, id);
create index microflow_dead_letters_failed on microflow_dead_letters (service, failed_at);

-- AUTOINCREMENT: a position is never used twice, so one that was published and deleted cannot hide a later row.
create table microflow_outbox (
    position integer primary key autoincrement,
    service text not null,
    topic text not null,
    "key" blob,
    value blob,
    headers blob not null,
    created_at integer not null
);

create table microflow_lease (
    id integer primary key check (id = 1),
    owner text not null,
    until integer not null
);

-- The migrations of the services' own tables.
create table microflow_migrations (
    service text not null,
    name text not null,
    checksum text not null,
    applied_at integer not null,
    primary key (service, name)
);

create table microflow_probe (
    id integer primary key check (id = 1),
    content blob
);
