"""Bandwidth warnings from hosts, through Apache Kafka, into PostgreSQL: each is stored exactly once.

The three scripts are simpleEvents.py, kproducer.py and kconsumer.py; README.md describes how to run them.
"""

__version__ = "1.0.0"
