# The image that serves the embedded model. `make image` builds it, `make image-test` runs it.
ARG BASE=debian:12.12-slim

FROM ${BASE} AS build
# Debian's stable release has one version of each package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
ENV PIP_NO_CACHE_DIR=1
RUN python3 -m venv .venv
COPY requirements/ requirements/
RUN requirements/install .venv requirements/serve.lock
COPY handler/ handler/
COPY training/ training/
COPY model_store/sentiment/ model_store/sentiment/
# What makes the archive does not serve, and nothing is installed any more.
RUN .venv/bin/python -m training archive \
    && .venv/bin/python -m pip uninstall --quiet --yes onnx ml-dtypes torch-model-archiver safetensors setuptools pip
COPY config.properties metrics.yaml ./
# Inference is for all, metrics are for the collector; management stays on loopback, inside the container. Java's heap is
# a quarter of the memory that the container is given; its buffers may take as much again.
RUN sed -i -E \
        -e 's#^(inference_address|metrics_address)=http://127\.0\.0\.1:#\1=http://0.0.0.0:#' \
        -e 's#^grpc_inference_address=127\.0\.0\.1$#grpc_inference_address=0.0.0.0#' \
        -e 's#-Xmx512m#-XX:MaxRAMPercentage=25#' config.properties \
    && test "$(grep -cE '0\.0\.0\.0|MaxRAMPercentage' config.properties)" = 4

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY --from=build /app/.venv .venv
COPY --from=build /app/model_store/sentiment.mar model_store/
COPY --from=build /app/config.properties /app/metrics.yaml ./
COPY server/ server/
ENV PATH=/app/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
EXPOSE 8080 7070 8082
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-m", "server.probe", "ready"]
ENTRYPOINT ["python", "-m", "server"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="fastai-sentiment-server" \
      org.opencontainers.image.description="A fastai text classifier, served with TorchServe" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}"
