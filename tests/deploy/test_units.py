"""The units of deploy/ on real systemd, step by step as deploy/README.md has it: pytest -m systemd.

Needs root, debootstrap and systemd-nspawn (Debian: systemd-container), and a mirror of Debian. Not part of .ci/run.
"""

import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from machine import CHECKOUT, ROOT, Machine, booted, wait_until

from servers import Servers, servers

pytestmark = pytest.mark.systemd

README = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
STEPS = re.findall(r"^```sh\n(.+?)^```", README.split("## systemd")[1].split("\n## ")[0], re.MULTILINE | re.DOTALL)
INSTALL, KAFKA_FILES, POSTGRES_FILE, CHECK, START_PRODUCER, START_CONSUMER, RESTART, _, UPGRADE, UNINSTALL = STEPS
TLS = "/etc/eventKafkaPostgres/tls"
ENV = "/etc/eventKafkaPostgres/env"
SERVICES = ("kproducer", "kconsumer")
STRICT = "umask 077\n"  # that of a hardened root
PASSWORD = """p\\a"s's \\" $x ${HOME} #y %z%41 `w` ;end"""  # what systemd, libpq or a URI might treat as special
RAISED = re.compile(r"Bandwidth exceeded on .* \(([0-9a-f-]{36})\)$")


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    with servers(sasl=True) as started:
        started.kafka.create_topic("bandwidth_exceeds", 3)
        connection = started.postgres.connect("postgres")
        with connection, connection.cursor() as cursor:
            cursor.execute("create role peculiar login password %s", (PASSWORD,))
            cursor.execute("grant all on database events to peculiar; grant all on schema public to peculiar")
        connection.close()
        yield started


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine on which the README's first block was run."""
    with booted(request.param, tmp_path_factory.mktemp(request.param)) as machine:
        print(machine.run("systemctl --version").splitlines()[0])
        machine.run(STRICT + INSTALL)
        yield machine


@pytest.fixture
def machine(installed: Machine, running: Servers) -> Iterator[Machine]:
    """The same with good settings and certificates, nothing running and nothing recorded."""
    running.kafka_proxy.mode = running.postgres_proxy.mode = "pass"
    put_certificates(installed, running)
    installed.write(ENV, env_file(running))
    yield installed
    running.kafka_proxy.mode = running.postgres_proxy.mode = "pass"
    installed.run("systemctl stop kproducer kconsumer; systemctl reset-failed", check=False)


def put_certificates(machine: Machine, running: Servers) -> None:
    made = running.certificates
    names = {"ca.pem": made.ca, "service.cert": made.service_cert, "service.key": made.service_key}
    for name, path in {**names, "postgres-ca.pem": made.ca}.items():
        machine.write(f"{CHECKOUT}/{name}", path.read_text())
    machine.run(KAFKA_FILES)
    machine.run(POSTGRES_FILE)


def env_file(running: Servers, **changes: str | None) -> str:
    """The settings that somebody fills in; None takes a line out."""
    paths = ("KAFKA_SSL_CAFILE", "KAFKA_SSL_CERTFILE", "KAFKA_SSL_KEYFILE", "PGSSLROOTCERT", "PGSSLMODE")
    settings: dict[str, str | None] = {k: v for k, v in running.environment(True).items() if k not in paths}
    settings |= {"KPRODUCER_OPTIONS": "--limit 0 --interface lo --host web-1 --heartbeat 60"} | changes
    return "".join(f"{name}={value}\n" for name, value in settings.items() if value is not None)


def recorded(running: Servers) -> list[str]:
    """The event_ids of all rows."""
    connection = running.postgres.connect("postgres")
    try:
        with connection.cursor() as cursor:
            cursor.execute("select to_regclass('bandwidth_exceeds')")
            if cursor.fetchone() == (None,):
                return []
            cursor.execute("select event_id::text from bandwidth_exceeds")
            return [event_id for (event_id,) in cursor.fetchall()]
    finally:
        connection.close()


def records_more(running: Servers, more: int = 3) -> None:
    """Wait until there are so many more rows."""
    before = len(recorded(running))
    wait_until(lambda: len(recorded(running)) >= before + more, f"{more} more rows than {before}")


def start(machine: Machine) -> None:
    machine.run(START_PRODUCER)
    machine.run(START_CONSUMER)


def raised(machine: Machine) -> list[str]:
    """The event_ids of all warnings that any start of kproducer has logged."""
    lines = machine.run("journalctl --no-pager -o cat -u kproducer").splitlines()
    return [found[1] for line in lines if (found := RAISED.search(line))]


def ended_well(machine: Machine, service: str) -> bool:
    return (machine.property(service, "ActiveState"), machine.property(service, "Result")) == ("inactive", "success")


def test_systemd_finds_nothing_wrong_with_the_units(installed: Machine) -> None:
    assert installed.run("systemd-analyze verify /etc/systemd/system/kproducer.service "
                         "/etc/systemd/system/kconsumer.service") == ""  # fmt: skip


@pytest.mark.parametrize("service", SERVICES)
def test_the_units_leave_a_service_little_to_harm(installed: Machine, service: str) -> None:
    print(installed.run(f"systemd-analyze security {service} --no-pager | tail -1"))
    installed.run(f"systemd-analyze security --threshold=20 {service}")


def test_warnings_become_rows_once_over_stop_restart_and_kill(machine: Machine, running: Servers) -> None:
    start(machine)
    records_more(running)
    for service in SERVICES:
        machine.run(f"systemctl restart {service}")
        records_more(running)
        machine.run(f"systemctl kill --signal=KILL --kill-whom=main {service}")
        wait_until(lambda service=service: machine.property(service, "NRestarts") == "1", f"{service} restarted")
        wait_until(lambda service=service: machine.is_active(service), f"{service} active")
        records_more(running)
    machine.run("systemctl stop kproducer")
    assert ended_well(machine, "kproducer")
    ids = raised(machine)
    wait_until(lambda: set(ids) <= set(recorded(running)), "all recorded")
    machine.run("systemctl stop kconsumer")
    assert ended_well(machine, "kconsumer")
    assert machine.failed() == []
    rows = recorded(running)
    assert len(rows) == len(set(rows))
    assert len(set(ids)) == len(ids) > 15


def test_the_check_reads_what_the_services_read_and_leaves_the_outbox_to_kproducer(
    machine: Machine, running: Servers
) -> None:
    assert "✗" not in machine.run(CHECK)
    start(machine)
    records_more(running)
    assert "outbox.sqlite: in use by a producer" in machine.run(CHECK)
    running.kafka_proxy.mode = "black hole"
    before = len(raised(machine))
    wait_until(lambda: len(raised(machine)) > before + 2, "raised while Kafka is away")
    machine.run("systemctl stop kproducer")
    running.kafka_proxy.mode = "pass"
    assert re.search(
        r"✓ outbox /var/lib/eventKafkaPostgres/outbox.sqlite: [1-9]\d* warnings? waiting", machine.run(CHECK)
    )
    ids = raised(machine)
    machine.run(START_PRODUCER)
    wait_until(lambda: set(ids) <= set(recorded(running)), "all recorded after the next start")
    machine.write(ENV, env_file(running, KPRODUCER_OPTIONS="--limit fast"))
    assert "--limit" in machine.run(CHECK, check=False)
    machine.write(ENV, env_file(running, PGSSLROOTCERT="system"))
    assert re.search(r"✗ PostgreSQL: .*certificate", machine.run(CHECK, check=False))


def test_a_stop_while_nothing_answers_is_no_failure(machine: Machine, running: Servers) -> None:
    start(machine)
    records_more(running)
    running.kafka_proxy.mode = running.postgres_proxy.mode = "black hole"
    before = len(raised(machine))
    wait_until(lambda: len(raised(machine)) > before + 2, "raised while Kafka is away")
    for service in SERVICES:
        machine.run(f"systemctl stop {service}")
        assert ended_well(machine, service), machine.run(f"systemctl status --no-pager {service}", check=False)
    assert machine.failed() == []
    assert machine.property("kproducer", "ExecMainStatus") == "1"  # what is left in the outbox is no secret
    running.kafka_proxy.mode = running.postgres_proxy.mode = "pass"
    ids = raised(machine)
    start(machine)
    wait_until(lambda: set(ids) <= set(recorded(running)), "all recorded after the next start")


WRONG = {
    "kproducer": ({"KPRODUCER_OPTIONS": "--limit fast"}, "--limit"),
    "kconsumer": ({"PGSSLMODE": "verify-nothing"}, "PGSSLMODE"),
}


@pytest.mark.parametrize("service", SERVICES)
def test_a_wrong_setting_is_a_failure_that_is_seen_and_not_tried_again(
    machine: Machine, running: Servers, service: str
) -> None:
    changes, text = WRONG[service]
    machine.write(ENV, env_file(running, **changes))
    machine.run(f"systemctl start {service}", check=False)
    wait_until(lambda: machine.failed() == [f"{service}.service"], "failed")
    assert machine.property(service, "ExecMainStatus") == "2"
    assert machine.property(service, "NRestarts") == "0"
    assert text in machine.says(service, "")["MESSAGE"]
    machine.write(ENV, env_file(running))
    machine.run(RESTART.replace("kproducer", service))
    machine.says(service, "started: ")
    assert machine.failed() == []


@pytest.mark.parametrize(
    ("service", "name"),
    [("kproducer", "ca.pem"), ("kproducer", "service.cert"), ("kconsumer", "service.key"),
     ("kconsumer", "postgres-ca.pem")],
)  # fmt: skip
def test_a_file_that_is_missing_is_named(machine: Machine, service: str, name: str) -> None:
    machine.run(f"rm {TLS}/{name}; systemctl start {service}", check=False)
    wait_until(lambda: machine.failed() == [f"{service}.service"], "failed")
    assert machine.property(service, "ExecMainStatus") == "2"
    assert f"etc_{name}" in machine.says(service, "can't read")["MESSAGE"]


def test_a_user_and_a_password_need_no_client_certificate(machine: Machine, running: Servers) -> None:
    machine.run(f"rm {TLS}/service.cert {TLS}/service.key")
    sasl = {name: value for name, value in running.kafka.environment("SASL").items() if not name.endswith("CAFILE")}
    machine.write(ENV, env_file(running, **sasl, KAFKA_SSL_CERTFILE="", KAFKA_SSL_KEYFILE=""))
    start(machine)
    records_more(running)


def test_no_file_at_all_is_no_failure_of_systemd(machine: Machine, running: Servers) -> None:
    """With public CAs and SASL the directory is empty; ours are not public, so it ends at Kafka's certificate."""
    machine.run(f"rm {TLS}/*")
    sasl = {name: value for name, value in running.kafka.environment("SASL").items() if not name.endswith("CAFILE")}
    none = dict.fromkeys(("KAFKA_SSL_CAFILE", "KAFKA_SSL_CERTFILE", "KAFKA_SSL_KEYFILE"), "")
    machine.write(ENV, env_file(running, **sasl, **none, PGSSLROOTCERT="system"))
    start(machine)
    for service, server in (("kproducer", "Kafka"), ("kconsumer", "PostgreSQL|Kafka")):
        machine.says(service, "started: ")
        wait_until(
            lambda service=service, server=server: any(
                re.search(f"({server}): .*certificate", line["MESSAGE"]) for line in machine.journal(service)
            ),
            f"a certificate that {service} does not trust",
        )
        assert machine.is_active(service)


@pytest.mark.parametrize("how", ["PGPASSWORD", "DATABASE_URL"])
def test_any_password_can_be_written_into_the_environment_file(machine: Machine, running: Servers, how: str) -> None:
    quoted = '"' + PASSWORD.replace("\\", "\\\\").replace('"', '\\"') + '"'
    password: dict[str, str | None] = {
        "PGUSER": "peculiar",
        "PGPASSWORD": quoted,
        "KCONSUMER_OPTIONS": f"--group {how}",
    }
    if how == "DATABASE_URL":
        host, port = running.postgres_proxy.address
        url = f"postgres://peculiar:{quote(PASSWORD, safe='')}@{host}:{port}/peculiar?sslmode=verify-full"
        gone = dict.fromkeys(("PGUSER", "PGPASSWORD", "PGHOST", "PGPORT", "PGDATABASE"))
        password = {**gone, "DATABASE_URL": url}
    make_database(running)
    machine.write(ENV, env_file(running, **{"PGDATABASE": "peculiar", **password}))
    start(machine)
    wait_until(lambda: peculiar_rows(running), "rows in the database of that user")


def make_database(running: Servers) -> None:
    connection = running.postgres.connect("postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("drop database if exists peculiar with (force)")
        cursor.execute("create database peculiar owner peculiar")
    connection.close()


def peculiar_rows(running: Servers) -> int:
    connection = running.postgres.connect("postgres", dbname="peculiar")
    try:
        with connection.cursor() as cursor:
            cursor.execute("select coalesce((select n_live_tup from pg_stat_user_tables "
                           "where relname = 'bandwidth_exceeds'), 0)")  # fmt: skip
            return int(cursor.fetchone()[0])
    finally:
        connection.close()


def test_the_journal_has_a_priority_for_each_line_and_one_timestamp(machine: Machine, running: Servers) -> None:
    start(machine)
    assert machine.says("kproducer", "Bandwidth exceeded")["PRIORITY"] == "4"
    for service in SERVICES:
        assert machine.says(service, "started: ")["PRIORITY"] == "6"
        assert all(not re.match(r"<\d>|\d{4}-\d\d", line["MESSAGE"]) for line in machine.journal(service))


def test_upgrade_and_uninstall(machine: Machine, running: Servers) -> None:
    start(machine)
    machine.run(STRICT + UPGRADE)
    records_more(running)
    machine.run(UNINSTALL)
    assert machine.failed() == []
    left = "find / -xdev -path /root -prune -o -name '*eventKafkaPostgres*' -print -o -name 'kproducer*' -print"
    assert machine.run(left).split() == []
