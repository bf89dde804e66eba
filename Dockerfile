# syntax=docker/dockerfile:1
# One image with both programs: `weir` (broker, store server, client) and `weir-operator`. It holds them, the C library they
# use, root certificates, and nothing else: no shell, no package manager. Runs as uid 65532 on a read-only root.
#
#   docker build --tag weir:0.1.0 .
#   docker build --build-arg SOURCE_DATE_EPOCH=$(git log -1 --pretty=%ct) --tag weir:0.1.0 .      the same bytes each time
#
# Give RUST a digest (rust:1.95-slim-bookworm@sha256:...) to pin what it is built with.
ARG RUST=rust:1.95-slim-bookworm
FROM ${RUST} AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates clang cmake g++ lld make perl \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG SOURCE_DATE_EPOCH=0
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} CARGO_INCREMENTAL=0 RUSTFLAGS="--remap-path-prefix=/src=. --remap-path-prefix=/usr/local/cargo=cargo"
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --locked --release --package weir --package weir-operator --bin weir --bin weir-operator \
 && sh .ci/image-root target/release /root-of-image

FROM scratch
COPY --from=build /root-of-image /
USER 65532:65532
ENV PATH=/usr/local/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# MQTT, MQTT over TLS, HTTP (health, metrics), admin, peers
EXPOSE 1883 8883 8080 8081 8082
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/weir"]
CMD ["--help"]
LABEL org.opencontainers.image.title="Weir" \
      org.opencontainers.image.description="MQTT broker, durable message queue and replayable stream store" \
      org.opencontainers.image.licenses="Apache-2.0"
