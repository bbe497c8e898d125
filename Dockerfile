FROM python:3.13-slim

WORKDIR /src
COPY eventkafkapostgres eventkafkapostgres
COPY setup.py pyproject.toml README.md LICENSE __init__.py simpleEvents.py kproducer.py kconsumer.py ./
RUN pip install --no-cache-dir . && \
    useradd --system --uid 10001 --create-home --home-dir /var/lib/eventKafkaPostgres events
USER 10001
WORKDIR /var/lib/eventKafkaPostgres
ENV STATE_DIRECTORY=/var/lib/eventKafkaPostgres PYTHONUNBUFFERED=1
VOLUME /var/lib/eventKafkaPostgres
STOPSIGNAL SIGTERM
# or kproducer --forever, with --network=host to see the host's interfaces
CMD ["kconsumer"]
