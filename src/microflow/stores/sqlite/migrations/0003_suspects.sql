-- `left_epoch` is the last epoch whose owner has left in good order; of those before this version nobody knows.
alter table microflow_partitions add column left_epoch integer;
alter table microflow_partitions add column careful_until integer;
update microflow_partitions set left_epoch = epoch;

-- An event that is alone in hand (`in_hand`), or was when its process ended: so often (`crashes`). `partition` is the
-- one under whose epoch it is handled, `number` and `offset` say where its record stands in that topic.
create table microflow_suspects (
    partition integer not null,
    number integer not null,
    "offset" integer not null,
    crashes integer not null default 0,
    in_hand integer not null default 1,
    primary key (partition, number, "offset")
) without rowid;
