-- One role and its databases per service; no role can access another's. Runs once, on an empty data directory.
\set ON_ERROR_STOP on
\set dagster `cat "${SECRETS:-/run/secrets}/postgres_dagster"`
\set mlflow `cat "${SECRETS:-/run/secrets}/postgres_mlflow"`

CREATE ROLE dagster LOGIN CONNECTION LIMIT 50 PASSWORD :'dagster';
CREATE ROLE mlflow LOGIN CONNECTION LIMIT 40 PASSWORD :'mlflow';

CREATE DATABASE dagster OWNER dagster;
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;

REVOKE CONNECT, TEMPORARY ON DATABASE dagster, mlflow, mlflow_auth, postgres, template1 FROM PUBLIC;
