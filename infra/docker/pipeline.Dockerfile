# The pipeline image: code server (executes the graph), web server, daemon, Dask workers, training processes.
#   docker build -f infra/docker/pipeline.Dockerfile -t bert-pipeline:0.2.0 \
#     --build-arg COMMIT="$(git describe --always --dirty --abbrev=12 --exclude='*')" .
#   docker build -f infra/docker/pipeline.Dockerfile -t bert-pipeline:0.2.0-cuda --build-arg VARIANT=cuda .
# The digest pins the base image. To look up the current digest: docker buildx imagetools inspect NAME:TAG
ARG PYTHON=python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3
ARG VARIANT=cpu

FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY constraints.txt infra/docker/*.lock ./

# The wheel on PyTorch's CPU index is a tenth the size of the CUDA wheel, which pip installs by default. It is another
# file, so torch.lock does not list it.
FROM build AS build-cpu
RUN TORCH=$(sed -n 's/^torch==//p' constraints.txt) \
    && pip install -c constraints.txt --index-url https://download.pytorch.org/whl/cpu "torch==$TORCH"

FROM build AS build-cuda
RUN pip install --no-deps --require-hashes --only-binary :all: -r torch.lock

# hadolint ignore=DL3006
FROM build-${VARIANT} AS installed
WORKDIR /src
RUN pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r pipeline.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY bert_pipeline bert_pipeline
COPY orchestration orchestration
# The commit that records and `bert-pipeline --version` name: the build context has no history.
ARG COMMIT=""
RUN if [ -n "$COMMIT" ]; then echo "$COMMIT" > bert_pipeline/COMMIT; fi
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && pip check

FROM ${PYTHON} AS runtime-cpu

# Triton compiles the launcher of each kernel on first use, hence gcc.
FROM ${PYTHON} AS runtime-cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# hadolint ignore=DL3006
FROM runtime-${VARIANT}
RUN groupadd --gid 10001 bert \
    && useradd --uid 10001 --gid bert --no-create-home --home-dir /tmp --shell /usr/sbin/nologin bert \
    && install -d -o bert -g bert /var/lib/bert-pipeline /var/lib/dagster
COPY --from=installed /opt/venv /opt/venv
COPY infra /opt/bert-pipeline/infra
COPY infra/dagster/production /opt/dagster
COPY --chmod=0755 infra/docker/with-secrets.sh /usr/local/bin/with-secrets
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    NUMBA_CACHE_DIR=/tmp/numba \
    HF_HUB_OFFLINE=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    DAGSTER_HOME=/opt/dagster \
    DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR=1 \
    DAGSTER_LOGS=/var/lib/dagster \
    BERT_PIPELINE_HOME=/var/lib/bert-pipeline
WORKDIR /var/lib/bert-pipeline
USER 10001:10001
ENTRYPOINT ["with-secrets"]
CMD ["dagster", "api", "grpc", "--host", "0.0.0.0", "--port", "4000", "--module-name", "orchestration.definitions"]
