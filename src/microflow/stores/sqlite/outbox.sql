-- name: append
insert into microflow_outbox (service, topic, "key", value, headers, created_at) values ($1, $2, $3, $4, $5, $6);

-- name: append in a step
insert into microflow_outbox (service, topic, "key", value, headers, created_at, publisher, partition)
values (?, ?, ?, ?, ?, ?, ?, ?);

-- name: in other hands
select topic, "key" from microflow_outbox where publisher is not ? limit ?;

-- name: pending
select topic, "key", value, headers, created_at, position, publisher, partition from microflow_outbox
where position > ?1 and publisher is not ?3 order by position limit ?2;

-- name: delete
delete from microflow_outbox where position in (select value from json_each(?));

-- name: last position
select seq from sqlite_sequence where name = 'microflow_outbox';

-- name: anybody's
select exists (select 1 from microflow_outbox where position > ? and publisher is null);

-- name: status
select count(*), (select created_at from microflow_outbox order by position limit 1) from microflow_outbox;

-- name: span
select coalesce(
    (select max(position) from microflow_outbox) - (select min(position) from microflow_outbox) + 1, 0
);

-- name: topics of slice
select topic, count(*), max(position)
from (select topic, position from microflow_outbox where position > ? order by position limit ?) group by topic;

-- name: somebody else publishes
select exists (select 1 from microflow_lease where owner <> ?1 and until > ?2 and until <= ?3);

-- name: lease
insert into microflow_lease (id, owner, until) values (1, ?1, ?2)
on conflict (id) do update set owner = excluded.owner, until = excluded.until
where owner = excluded.owner or until <= ?3 or until > excluded.until
returning owner;

-- name: partition count
select partitions from microflow_partition_counts where topic = ?;

-- name: remember partition count
insert into microflow_partition_counts (topic, partitions) values (?, ?) on conflict (topic) do nothing;

-- name: switch
insert into microflow_partition_counts (topic, partitions) values (?, ?)
on conflict (topic) do update set partitions = excluded.partitions;

-- name: pending of topic
select count(*) from microflow_outbox where topic = ?;

-- name: new version of every registry
update microflow_registries set version = version + 1;
