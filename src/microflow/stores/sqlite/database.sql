-- name: identity
select database_id, cluster_id from microflow_identity;

-- name: remember cluster
update microflow_identity set cluster_id = ? where cluster_id is null;

-- name: applied migrations
select name, checksum from microflow_migrations where service = ?;

-- name: remember migration
insert into microflow_migrations (service, name, checksum, applied_at) values (?, ?, ?, ?);

-- name: probe
insert into microflow_probe (id, content) values (1, randomblob(65536))
on conflict (id) do update set content = excluded.content;

-- name: time
select strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now');
