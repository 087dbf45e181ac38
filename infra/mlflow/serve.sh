#!/bin/sh
# Bring the database to this version's tables, then serve. Settings are MLflow's environment variables.
set -eu
# Runs, registry and users have a pool each, in each of two workers: with 6 connections a pool 36, of the role's 40.
# A request that finds none free waits for one; beyond the limit PostgreSQL would turn it away.
export MLFLOW_SQLALCHEMYSTORE_POOL_SIZE=5 MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW=1
mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"
exec mlflow server --app-name basic-auth --workers 2
