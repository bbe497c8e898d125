-- Tables, indexes and view of eventKafkaPostgres. kconsumer creates what is missing when it starts; where its user may
-- not create anything, the owner does it once: psql -f schema.sql. Running it again changes nothing.
-- PostgreSQL 13 or newer.

-- The warnings. The columns up to "message" are the fields of kproducer's message. event_id is what makes a warning that
-- was sent twice one row. "extra" holds the fields that a newer producer sends and this table has no column for.
-- Columns, indexes, triggers and partitions of your own do no harm: kconsumer names the columns that it writes.
create table if not exists bandwidth_exceeds (
    event_id uuid primary key,
    observed_at timestamptz not null, -- the end of the measured time
    seconds double precision not null, -- the measured time; the rates are over it
    episode_started_at timestamptz not null, -- observed_at of the first warning of this overload
    host text not null,
    interfaces text[] not null,
    bytes_sent_per_second double precision not null,
    bytes_received_per_second double precision not null,
    bytes_per_second double precision not null,
    limit_bytes_per_second double precision not null,
    message text not null,
    topic text not null, -- where the message was read: Kafka's topic, partition and offset
    partition integer not null,
    "offset" bigint not null,
    recorded_at timestamptz not null default now(),
    extra jsonb
);

-- One host's episodes, and one host's warnings.
create index if not exists bandwidth_exceeds_host_episode on bandwidth_exceeds (host, episode_started_at);

-- All hosts of some time, and who is over the limit now. Rows arrive nearly in the order of time, so a few pages of a
-- block range index do for millions of them, and inserting costs next to nothing.
create index if not exists bandwidth_exceeds_times on bandwidth_exceeds
    using brin (observed_at, episode_started_at) with (autosummarize = on);

-- What can't be stored as a warning, byte for byte, with the reason. Kafka's topic id stays the same for the life of a
-- topic: a topic that was deleted and created again has another. The name stands beside it for people.
create table if not exists rejected_messages (
    topic_id uuid,
    partition integer,
    "offset" bigint,
    topic text not null,
    key bytea,
    value bytea,
    reason text not null,
    recorded_at timestamptz not null default now(),
    primary key (topic_id, partition, "offset")
);

-- How far each partition is recorded, written in the same transaction as the rows: this, and not what Kafka keeps of the
-- consumer group, says where kconsumer reads on.
create table if not exists consumed_offsets (
    consumer_group text,
    topic_id uuid,
    partition integer,
    topic text not null,
    next_offset bigint not null,
    primary key (consumer_group, topic_id, partition)
);

-- When each host was last heard of, over its limit or not (kproducer --heartbeat). Never in the future.
create table if not exists heartbeats (
    host text primary key,
    heartbeat_at timestamptz not null,
    recorded_at timestamptz not null default now()
);

-- One row for each overload of a host. started_at is when its first warning was observed; the time that this warning
-- measured lies before it and counts in seconds_over, which is the sum of the measured times. The mean is weighted by
-- them. Bytes are rounded to whole ones, seconds to milliseconds. A condition on host or started_at reaches an index; for
-- who is over the limit now, ask the table: ... from bandwidth_exceeds where observed_at > now() - interval '10 s'.
create or replace view bandwidth_episodes as
select
    host,
    episode_started_at as started_at,
    max(observed_at) as ended_at,
    round(sum(seconds)::numeric, 3)::double precision as seconds_over,
    round(max(bytes_per_second)) as peak_bytes_per_second,
    round(sum(bytes_per_second * seconds) / nullif(sum(seconds), 0)) as mean_bytes_per_second,
    round(sum((bytes_per_second - limit_bytes_per_second) * seconds)) as bytes_over_limit,
    count(*) as warnings
from bandwidth_exceeds
group by host, episode_started_at;
