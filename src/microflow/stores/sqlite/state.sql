-- name: has tables
select exists (select 1 from sqlite_master where name = 'microflow_schema');

-- name: version
select coalesce(max(version), 0) from microflow_schema;

-- name: applied
select name, checksum from microflow_migrations where service = ? order by name;

-- name: cluster
select cluster_id from microflow_identity;

-- name: outbox
select count(*), min(created_at) from microflow_outbox;

-- A file does not know how many rows it has; counting more than these would take seconds.
-- name: inbox
select count(*) from (select 1 from microflow_inbox limit 1000000);

-- name: parked
select count(*) from microflow_parked where service = ?;

-- name: dead letters
select count(*) from microflow_dead_letters where service = ? and state = 0;

-- name: watermarks
select topic, number, watermark from microflow_partitions where service = ? and watermark is not null;

-- name: services
select distinct service from microflow_handlers order by service;
