-- `publisher`: who publishes the row from memory. `partition`: where it goes, if its key does not say it.
alter table microflow_outbox add column publisher integer;

alter table microflow_outbox add column partition integer;
