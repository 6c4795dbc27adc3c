-- Whoever appends takes this lock before a position, and keeps it until what it did is seen or undone. A transaction
-- that is prepared keeps the name that it had.
-- name: appenders
select coalesce(array_agg(distinct virtualtransaction), '{}') as names
from pg_locks
where locktype = 'relation' and relation = 'microflow.outbox'::regclass and mode = 'RowExclusiveLock' and granted
  and database = (select oid from pg_database where datname = current_database());

-- name: first row
select position from microflow.outbox where position > $1 and position <= $2 order by position limit 1;
