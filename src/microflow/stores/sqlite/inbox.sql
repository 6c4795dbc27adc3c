-- name: claim
insert or ignore into microflow_inbox (handler, digest, status, content, partition, "offset", completed_at)
values (?, ?, ?, ?, ?, ?, ?);

-- name: resume
insert into microflow_inbox (handler, digest, status, content, partition, "offset", completed_at)
values (?, ?, ?, ?, ?, ?, ?)
on conflict (handler, digest) do update set status = excluded.status, completed_at = excluded.completed_at;

-- name: set status
update microflow_inbox set status = ?, completed_at = ? where handler = ? and digest = ?;

-- name: content
select content from microflow_inbox where handler = ? and digest = ?;

-- name: claimed from
select 1 from microflow_inbox as claim
where claim.handler = (select id from microflow_handlers where service = ?1 and name = ?2)
  and claim.partition = (select id from microflow_partitions where service = ?1 and topic = ?3 and number = ?4)
  and claim."offset" >= ?5
limit 1;

-- name: passed partitions
select id, watermark from microflow_partitions where service = ? and watermark is not null;

-- name: purge
delete from microflow_inbox
where (handler, digest) in (
    select handler, digest from microflow_inbox as claim
    where partition = ? and completed_at < ? and "offset" < ?
      and (
          status = 0
          or status = 2 and not exists (
              select 1 from microflow_dead_letters as letter
              where letter.handler = claim.handler and letter.digest = claim.digest
          )
      )
    order by completed_at
    limit ?
);
