-- name: identity
select database_id, cluster_id from microflow.identity;

-- name: remember cluster
update microflow.identity set cluster_id = $1 where cluster_id is null;

-- name: applied migrations
select name, checksum from microflow.migrations where service = $1;

-- name: remember migration
insert into microflow.migrations (service, name, checksum, applied_at) values ($1, $2, $3, $4);

-- name: probe
insert into microflow.probe (id, content) values (1, $1)
on conflict (id) do update set content = excluded.content;

-- name: time
select clock_timestamp();
