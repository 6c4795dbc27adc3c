-- name: format
select format, cluster_id from microflow_log;

-- name: found log
insert into microflow_log (one, format, cluster_id) values (1, ?, ?);

-- name: all topics
select name, incarnation, partitions, first_partition from microflow_log_topics;

-- name: topic
select name, incarnation, partitions, first_partition from microflow_log_topics where name = ?;

-- name: next partition
select max(
    coalesce((select max(id) + 1 from microflow_log_partitions), 1),
    coalesce((select max(first_partition) + :room from microflow_log_topics), 1)
);

-- name: next topic
select min(first_partition) from microflow_log_topics where first_partition > ?;

-- name: grow topic
update microflow_log_topics set partitions = ? where name = ?;

-- name: add topic
insert into microflow_log_topics (name, incarnation, partitions, first_partition) values (?, ?, ?, ?);

-- name: add partition
insert into microflow_log_partitions (id, topic_id, partition)
values (?, (select id from microflow_log_topics where name = ?), ?);

-- name: bounds
select id, beginning, ending from microflow_log_partitions
where id in (select value from json_each(?));

-- name: tail
select ending, newest from microflow_log_partitions where id = ?;

-- name: append
insert into microflow_log_records (id, timestamp, key, value, headers) values (?, ?, ?, ?, ?);

-- name: advance
update microflow_log_partitions set ending = ?, newest = ? where id = ?;

-- name: records
select id, timestamp, key, value, headers from microflow_log_records
where id >= ? and id < ? order by id limit ?;

-- name: timestamp
select timestamp from microflow_log_records where id = ?;

-- name: beginnings
select microflow_log_partitions.id, beginning from microflow_log_partitions
join microflow_log_records on microflow_log_records.id = microflow_log_partitions.id << 40 | beginning
where beginning < ending and microflow_log_records.timestamp < ?;

-- name: timestamps
select timestamp from microflow_log_records where id >= ? and id < ? order by id limit ?;

-- name: delete records
delete from microflow_log_records where id >= ? and id < ?;

-- name: move beginning
update microflow_log_partitions set beginning = max(beginning, ?) where id = ?;

-- name: groups of topic
select distinct group_name from microflow_log_members, json_each(microflow_log_members.topics)
where json_each.value = ?;

-- name: add group
insert into microflow_log_groups (name) values (?) on conflict do nothing;

-- name: begin rebalance
update microflow_log_groups set rebalancing = 1 where name = ? and rebalancing = 0;

-- name: nobody is ready
update microflow_log_members set ready = 0 where group_name = ?;

-- name: add member
insert into microflow_log_members (group_name, topics, ready, session, sign) values (?, ?, 1, ?, ?);

-- name: ready
update microflow_log_members set ready = 1 where id = ?;

-- name: delete member
delete from microflow_log_members where id = ? and group_name = ?;

-- name: members
select id, topics, ready, session, sign from microflow_log_members where group_name = ? order by id;

-- name: signs
select sign from microflow_log_members where sign is not null;

-- name: standing
select microflow_log_members.ready, microflow_log_groups.rebalancing, microflow_log_groups.generation
from microflow_log_members join microflow_log_groups on microflow_log_groups.name = microflow_log_members.group_name
where microflow_log_members.id = ?;

-- name: complete rebalance
update microflow_log_groups set rebalancing = 0, generation = generation + 1 where name = ?;

-- name: clear assignments
delete from microflow_log_assignments where group_name = ?;

-- name: assign
insert into microflow_log_assignments (group_name, partition_id, member_id) values (?, ?, ?);

-- name: assigned
select microflow_log_topics.name, microflow_log_partitions.partition, microflow_log_partitions.id
from microflow_log_assignments
join microflow_log_partitions on microflow_log_partitions.id = microflow_log_assignments.partition_id
join microflow_log_topics on microflow_log_topics.id = microflow_log_partitions.topic_id
where microflow_log_assignments.group_name = ? and microflow_log_assignments.member_id = ?;

-- name: partitions of topics
select microflow_log_topics.name, microflow_log_partitions.partition, microflow_log_partitions.id
from microflow_log_partitions
join microflow_log_topics on microflow_log_topics.id = microflow_log_partitions.topic_id
where microflow_log_topics.name in (select value from json_each(?))
order by microflow_log_topics.name, microflow_log_partitions.partition;

-- name: how many partitions
select coalesce(sum(partitions), 0) from microflow_log_topics where name in (select value from json_each(?));

-- name: commit offset
insert into microflow_log_offsets (group_name, partition_id, committed, metadata) values (?, ?, ?, ?)
on conflict (group_name, partition_id) do update set committed = excluded.committed, metadata = excluded.metadata;

-- name: committed
select partition_id, committed, metadata from microflow_log_offsets
where group_name = ? and partition_id in (select value from json_each(?));

-- name: lags
with readers (name) as (
    select group_name from microflow_log_members, json_each(microflow_log_members.topics) where json_each.value = ?1
    union
    select microflow_log_offsets.group_name from microflow_log_offsets
    join microflow_log_partitions on microflow_log_partitions.id = microflow_log_offsets.partition_id
    join microflow_log_topics on microflow_log_topics.id = microflow_log_partitions.topic_id
    where microflow_log_topics.name = ?1
)
select readers.name, coalesce(sum(ending - max(coalesce(committed, beginning), beginning)), 0)
from readers
left join microflow_log_topics on microflow_log_topics.name = ?1
left join microflow_log_partitions on microflow_log_partitions.topic_id = microflow_log_topics.id
left join microflow_log_offsets on microflow_log_offsets.partition_id = microflow_log_partitions.id
    and microflow_log_offsets.group_name = readers.name
group by readers.name;
