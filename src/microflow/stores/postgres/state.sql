-- name: applied
select name, checksum from microflow.migrations where service = $1 order by name;

-- name: cluster
select cluster_id from microflow.identity;

-- name: watermarks
select partition.topic, partition.number, mark.watermark
from microflow.partitions as partition join microflow.watermarks as mark on mark.partition = partition.id
where partition.service = $1;

-- name: counts
select
    (select count(*) from microflow.outbox) as outbox,
    (select created_at from microflow.outbox order by position limit 1) as outbox_oldest,
    (select count(*) from (select 1 from microflow.inbox limit 100000) as claims) as inbox,
    (select greatest(reltuples, 0)::bigint from pg_class where oid = 'microflow.inbox'::regclass) as inbox_estimate,
    pg_total_relation_size('microflow.inbox') as inbox_bytes,
    (select count(*) from microflow.parked where service = $1) as parked,
    (select count(*) from microflow.dead_letters where service = $1 and state = 0) as dead_letters;

-- name: server
select
    current_setting('server_version') as version,
    pg_is_in_recovery() or current_setting('default_transaction_read_only')::boolean as read_only,
    (select count(*) from pg_stat_activity where backend_type = 'client backend') as connections,
    current_setting('max_connections')::integer as most_connections;

-- name: oldest transaction
select xact_start, coalesce(nullif(application_name, ''), usename, '?') as owner from pg_stat_activity
where xact_start is not null and backend_type = 'client backend' and pid <> pg_backend_pid()
order by xact_start limit 1;

-- name: settings
select name, current_setting(name) as value
from unnest(array[
    'synchronous_commit', 'fsync', 'full_page_writes', 'wal_level', 'autovacuum', 'max_locks_per_transaction'
]) as name;

-- name: services
select distinct service from microflow.handlers order by service;
