"""A host whose bandwidth use goes over a limit says so, through Apache Kafka, into PostgreSQL, once.

The three scripts are simpleEvents.py, kproducer.py and kconsumer.py; README.md tells how to run them.
"""

__version__ = "1.0.0"
