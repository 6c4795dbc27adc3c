-- name: mark
insert into microflow_suspects (partition, number, "offset")
select id, ?1, ?2 from microflow_partitions where service = ?3 and topic = ?4 and number = ?5 and epoch = ?6
on conflict (partition, number, "offset") do update set in_hand = 1;

-- name: known
select number, "offset", crashes from microflow_suspects where partition = ?;

-- name: count crashes
update microflow_suspects set crashes = crashes + ?1, in_hand = 0 where partition = ?2 and in_hand = 1;

-- name: clear
delete from microflow_suspects where partition = ? and number = ? and "offset" = ?;
