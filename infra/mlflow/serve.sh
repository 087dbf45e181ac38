#!/bin/sh
# Migrate the database to this version of MLflow, then serve. MLflow's environment variables configure the server.
set -eu
# Runs, registry and users have one connection pool each, in each of two workers: 6 pools of 6 connections are 36 of the
# role's 40. A request waits for a free connection; beyond the role's limit PostgreSQL would reject it.
export MLFLOW_SQLALCHEMYSTORE_POOL_SIZE=5 MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW=1
mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"
exec mlflow server --app-name basic-auth --workers 2
