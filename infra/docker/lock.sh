#!/bin/sh
# Write the *.lock files that the images install from: each package with its version (constraints.txt) and SHA-256.
# Run after each change of pyproject.toml or constraints.txt. Requires uv (pip install uv) and the package index.
set -eu
cd "$(dirname "$0")/../.."

lock() { # name, arguments of `uv pip compile`
  file=infra/docker/$1.lock
  shift
  uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --only-binary :all: \
    --constraints constraints.txt --generate-hashes --no-annotate --custom-compile-command infra/docker/lock.sh \
    --output-file "$file" "$@"
}

given=$(mktemp -d)
trap 'rm -rf "$given"' EXIT
echo torch >"$given/torch.in"
echo "torch; sys_platform == 'none'" >"$given/without-torch.txt" # torch comes from torch.lock or the CPU index
printf '%s\n' 'mlflow[auth]' psycopg2-binary boto3 'sqlalchemy<2.1' >"$given/mlflow.in"

lock torch "$given/torch.in"
lock pipeline pyproject.toml --extra dask --extra production --overrides "$given/without-torch.txt"
lock mlflow "$given/mlflow.in"
