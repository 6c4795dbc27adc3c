-- Which topic the watermark is one of: a topic that was deleted and created again has its name and another incarnation.
alter table microflow_partitions add column incarnation text;
