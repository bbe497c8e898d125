"""Environments with which a script would start: the least of one, and what a password needs beside it."""

KAFKA = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
SASL = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256",
    "KAFKA_SASL_PLAIN_USERNAME": "avnadmin",
    "KAFKA_SASL_PLAIN_PASSWORD": "s3cret",
}
