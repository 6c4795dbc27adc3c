-- name: find
select id from microflow_partitions where service = ? and topic = ? and number = ?;

-- name: intern
insert into microflow_partitions (service, topic, number) values (?, ?, ?) returning id;

-- name: take
insert into microflow_partitions (service, topic, number, epoch, owner) values (?, ?, ?, 1, ?)
on conflict (service, topic, number) do update set epoch = epoch + 1, owner = excluded.owner
returning id, epoch, watermark, coalesce(left_epoch, 0) = epoch - 1,
    case when left_epoch = epoch - 1 then careful_until end, incarnation;

-- name: release
update microflow_partitions set left_epoch = epoch, careful_until = ?
where service = ? and topic = ? and number = ? and epoch = ?;

-- name: epochs
select id, epoch from microflow_partitions where id in (select value from json_each(?));

-- name: advance
update microflow_partitions set watermark = max(coalesce(watermark, 0), ?) where id = ?;

-- name: begin
update microflow_partitions set watermark = ?, incarnation = ? where id = ?;

-- name: read from further on
update microflow_triggers set since = json_set(since, '$."' || ?3 || '"', ?4)
where topic = ?2 and handler in (select id from microflow_handlers where service = ?1)
  and json_extract(since, '$."' || ?3 || '"') > ?4;

-- name: watermarks
select topic, number, watermark from microflow_partitions where service = ? and watermark is not null;

-- name: incarnations
select topic, number, incarnation from microflow_partitions where service = ? and incarnation is not null;

-- name: epoch
select epoch from microflow_partitions where service = ? and topic = ? and number = ?;

-- name: owners
select topic, number, epoch, case when left_epoch is not epoch then owner end
from microflow_partitions where service = ? and epoch > 0;
