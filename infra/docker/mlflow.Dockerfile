# MLflow server with PostgreSQL, S3 and user management, which the official image lacks. No pipeline, no PyTorch.
#   docker build -f infra/docker/mlflow.Dockerfile -t bert-pipeline-mlflow:3.17.2 .
ARG PYTHON=python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3

FROM ${PYTHON} AS installed
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY infra/docker/mlflow.lock ./
RUN pip install --no-deps --require-hashes --only-binary :all: -r mlflow.lock && pip check

FROM ${PYTHON}
RUN groupadd --gid 10001 bert \
    && useradd --uid 10001 --gid bert --no-create-home --home-dir /tmp --shell /usr/sbin/nologin bert
COPY --from=installed /opt/venv /opt/venv
COPY infra/mlflow /opt/mlflow
COPY --chmod=0755 infra/docker/with-secrets.sh /usr/local/bin/with-secrets
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_AUTH_CONFIG_PATH=/opt/mlflow/basic_auth.ini
WORKDIR /tmp
USER 10001:10001
EXPOSE 5000
ENTRYPOINT ["with-secrets"]
CMD ["/opt/mlflow/serve.sh"]
