-- Whether somebody else has a row's key in hand is seen as of now, when the locks of the keys are held. The watermarks
-- come last: their rows are held until the commit, and other lanes of the service want them too. What is settled ($12)
-- is not looked through, and no index but that of the keys can answer the question in these words. What rows have in
-- common is said once for each kind of row: most are of one.
-- name: write
with given as (
    select row.*, common.*, (hashtextextended(topic || ' ' || encode(key, 'hex'), 0) & 2147483647)::integer as spread
    from unnest($2::integer[], $3::bytea[], $4::bytea[], $5::bytea[])
        with ordinality as row (kind, key, value, headers, place)
    cross join lateral (
        select ($6::text[])[row.kind] as topic, ($7::timestamptz[])[row.kind] as created_at,
            ($8::bigint[])[row.kind] as publisher, ($9::integer[])[row.kind] as partition
    ) as common
),
appended as (
    insert into microflow.outbox (service, topic, key, value, headers, created_at, publisher, partition)
    select $1, topic, key, value, headers, created_at,
        case when publisher is not null and (key is null or not exists (
            select 1 from microflow.outbox as other
            where (other.spread, other.position) > (given.spread, $12::bigint)
              and (other.spread, other.position) <= (given.spread, 9223372036854775807)
              and other.topic = given.topic and other.key = given.key
              and other.publisher is distinct from given.publisher
        )) then publisher end,
        partition
    from given
    order by place
    returning position, publisher
),
advanced as (
    insert into microflow.watermarks as stored (partition, watermark)
    select partition, watermark from unnest($10::integer[], $11::bigint[]) as reached (partition, watermark)
    where (select count(*) from appended) >= 0
      and not exists (
          select 1 from microflow.watermarks as known
          where known.partition = reached.partition and known.watermark >= reached.watermark
      )
    order by partition
    on conflict (partition) do update set watermark = excluded.watermark
    where stored.watermark < excluded.watermark
)
select pg_current_xact_id_if_assigned()::text as transaction,
    array_agg(position order by position) as positions,
    array_agg(publisher is not null order by position) as have_publishers
from appended;
