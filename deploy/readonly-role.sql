-- A role for Grafana, or for people: reads what kconsumer records, and nothing else. Run it as the tables' owner (who
-- needs CREATEROLE; Aiven: avnadmin), after kconsumer has created them:
--   psql "$DATABASE_URL" -f deploy/readonly-role.sql -c '\password bandwidth_reader'
-- Running it again changes nothing. To take it away: drop owned by bandwidth_reader; drop role bandwidth_reader;
do $$
begin
    if not exists (select from pg_roles where rolname = 'bandwidth_reader') then
        create role bandwidth_reader login;
    end if;
    execute format('grant usage on schema %I to bandwidth_reader', current_schema());
end
$$;

alter role bandwidth_reader set default_transaction_read_only = on;
alter role bandwidth_reader set statement_timeout = '30s';

grant select on bandwidth_exceeds, bandwidth_episodes, heartbeats, consumed_offsets to bandwidth_reader;
-- Not the bytes of what was rejected: anybody who may write to the topic chooses them.
grant select (topic_id, partition, "offset", topic, reason, recorded_at) on rejected_messages to bandwidth_reader;
