import logging

import pytest

from eventkafkapostgres import outages
from eventkafkapostgres.outages import Outage, counted, explain_kafka_error

# What kafka-python says


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] Hostname mismatch, certificate is not valid", "for another host name"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired", "has expired"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] self signed", "not signed by the CA in KAFKA_SSL_CAFILE"),
        ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED]", "requires a client certificate"),
        ("SaslAuthenticationFailedError: no", "KAFKA_SASL_PLAIN_USERNAME with its password"),
        ("Topic warnings not found in cluster metadata", "the topic warnings is missing"),
        ("DNS lookup failed for nohost:9092, exception", "there is no host nohost"),
        (
            "Libraries for zstd compression codec not found",
            "compression zstd needs the Python package zstandard: pip install",
        ),
        ("[Error 32] InvalidTimestampError", "this host's clock is wrong"),
        ("Got error produce response, retrying (inf attempts left): NotEnoughReplicasError", "replicas of the topic"),
        ("what nobody\nthought of", "what nobody thought of"),
    ],
)
def test_an_error_of_kafka_python_is_put_in_plain_words(text, meaning):
    assert meaning in explain_kafka_error(text)


def test_the_most_telling_cause_is_kept_for_a_while_and_then_gives_way(kafka_log, clock):
    for text in ("CERTIFICATE_VERIFY_FAILED", "Connection lost", "nothing that is known"):
        kafka_log.emit(logging.makeLogRecord({"msg": text}))
    assert "not signed by the CA" in kafka_log.cause
    assert kafka_log.at == 1000
    clock.now += outages.CAUSE_SECONDS + 1
    kafka_log.emit(logging.makeLogRecord({"msg": "Connection lost"}))
    assert "closes the connection" in kafka_log.cause
    assert kafka_log.at == clock.now
    kafka_log.forget()
    kafka_log.emit(logging.makeLogRecord({"msg": "Connection lost"}))
    assert "closes the connection" in kafka_log.cause


def test_an_outage_logs_each_cause_once_and_its_end_once(caplog):
    caplog.set_level(logging.INFO)
    outage = Outage("Kafka", logging.getLogger("kproducer"))
    outage.end()
    for cause in ("refused", "refused", "silent", "refused"):
        outage.begin(cause)
    outage.end()
    outage.end()
    outage.begin("refused")
    assert caplog.messages == [
        "Kafka: refused; trying again",
        "Kafka: silent; trying again",
        "Kafka: works again",
        "Kafka: refused; trying again",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO", "WARNING"]


def test_one_is_singular():
    assert [counted(number, "warning") for number in (0, 1, 2)] == ["0 warnings", "1 warning", "2 warnings"]
