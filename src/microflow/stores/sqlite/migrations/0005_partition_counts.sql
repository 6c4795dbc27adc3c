-- How many partitions of a topic are used by those who publish this outbox, whatever the log has by now.
create table microflow_partition_counts (
    topic text primary key,
    partitions integer not null
) without rowid;
