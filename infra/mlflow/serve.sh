#!/bin/sh
# Bring the database to this version's tables, then serve. Settings are MLflow's environment variables.
set -eu
mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"
exec mlflow server --app-name basic-auth --workers 2
