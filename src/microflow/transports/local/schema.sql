create table microflow_log (
    one integer primary key check (one = 1),
    format integer not null,
    cluster_id text not null
);

create table microflow_log_topics (
    id integer primary key,
    name text not null unique,
    incarnation text not null,
    partitions integer not null,
    first_partition integer not null
);

-- The partitions of a topic have consecutive ids, from its first_partition on.
create table microflow_log_partitions (
    id integer primary key,
    topic_id integer not null references microflow_log_topics (id),
    partition integer not null,
    beginning integer not null default 0,
    ending integer not null default 0,
    newest integer not null default 0
);

-- id is the partition's id times 2^40 plus the offset: each partition is a range of one b-tree, without an index.
-- timestamp counts microseconds since 1970 and never goes back within a partition.
create table microflow_log_records (
    id integer primary key,
    timestamp integer not null,
    key blob,
    value blob,
    headers blob not null
);

-- generation counts completed rebalances. While rebalancing is 1 the next one is being prepared.
create table microflow_log_groups (
    name text primary key,
    generation integer not null default 0,
    rebalancing integer not null default 0
) without rowid;

-- ready is 1 once the member has given up its partitions for the next generation.
-- session is in seconds. A member without one never expires, and has no sign of life.
create table microflow_log_members (
    id integer primary key autoincrement,
    group_name text not null references microflow_log_groups (name),
    topics text not null,
    ready integer not null,
    session real,
    sign text
);

create index microflow_log_members_by_group on microflow_log_members (group_name);

create table microflow_log_assignments (
    group_name text not null references microflow_log_groups (name),
    partition_id integer not null references microflow_log_partitions (id),
    member_id integer not null references microflow_log_members (id) on delete cascade,
    primary key (group_name, partition_id)
) without rowid;

create table microflow_log_offsets (
    group_name text not null references microflow_log_groups (name),
    partition_id integer not null references microflow_log_partitions (id),
    committed integer not null,
    metadata text not null,
    primary key (group_name, partition_id)
) without rowid;
