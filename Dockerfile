# How to run it: deploy/README.md. tests/deploy/test_image.py builds it by buildah on a base made by debootstrap.
FROM python:3.13-slim AS build
WORKDIR /build
COPY setup.py pyproject.toml README.md LICENSE __init__.py simpleEvents.py kproducer.py kconsumer.py ./
COPY eventkafkapostgres eventkafkapostgres
RUN python -m venv /opt/eventKafkaPostgres && \
    /opt/eventKafkaPostgres/bin/pip install --no-cache-dir .

FROM python:3.13-slim
COPY --from=build /opt/eventKafkaPostgres /opt/eventKafkaPostgres
RUN groupadd --gid 10001 events && \
    useradd --uid 10001 --gid events --no-create-home --home-dir /var/lib/eventKafkaPostgres --shell /usr/sbin/nologin \
        events && \
    install --directory --owner=events --group=events --mode=700 /var/lib/eventKafkaPostgres
ENV PATH=/opt/eventKafkaPostgres/bin:$PATH STATE_DIRECTORY=/var/lib/eventKafkaPostgres
USER 10001:10001
WORKDIR /var/lib/eventKafkaPostgres
VOLUME /var/lib/eventKafkaPostgres
# As process 1 a program has no default action for SIGTERM: one that comes before its handlers would be lost. Blocked, it
# waits until they are there.
ENTRYPOINT ["env", "--block-signal=TERM,INT"]
# or kproducer --forever, with --network=host to see the host's interfaces
CMD ["kconsumer"]
