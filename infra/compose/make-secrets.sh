#!/bin/sh
# Generate the missing secrets of the stack. To rotate one, remove its file, run this script, and see README.md.
#
# Only the owner can enter the folder. The files in it are world-readable because Compose mounts them with their
# permissions, and each service reads them as a user that does not exist on this machine.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets

for name in postgres_admin postgres_dagster postgres_mlflow mlflow_admin mlflow_pipeline mlflow_session_key \
  s3_admin s3_mlflow s3_pipeline dagster_ui; do
  [ -s "secrets/$name" ] || openssl rand -hex 24 >"secrets/$name"
done

secret() {
  cat "secrets/$1"
}

rm -f secrets/proxy_users secrets/s3.json
printf 'dagster:%s\n' "$(secret dagster_ui | openssl passwd -6 -stdin)" >secrets/proxy_users

identity() { # name, actions
  printf '    {"name": "%s", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": [%s]}' \
    "$1" "$1" "$(secret "s3_$1")" "$2"
}
on() { # bucket
  printf '"Read:%s", "Write:%s", "List:%s", "Tagging:%s"' "$1" "$1" "$1" "$1"
}
{
  printf '{\n  "identities": [\n'
  identity admin '"Admin", "Read", "Write", "List"' && printf ',\n'
  identity mlflow "$(on mlflow)" && printf ',\n'
  identity pipeline "$(on artifacts)" && printf '\n'
  printf '  ]\n}\n'
} >secrets/s3.json

chmod 444 secrets/*
[ -e .env ] || cp .env.example .env
echo "secrets/ and .env are complete; Dagster: user dagster, password in secrets/dagster_ui;"
echo "MLflow: user admin, password in secrets/mlflow_admin"
