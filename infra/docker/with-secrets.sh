#!/bin/sh
# Run a command with secrets in its environment: NAME_FILE=/run/secrets/x sets NAME to the content of that file.
# Images and Compose files contain no secrets. Exit with code 78 if a secret is missing, empty or a well-known default.
set -eu
secrets=${SECRETS:-/run/secrets}
for name in $(env | sed -n "s|^\([A-Z][A-Z0-9_]*\)_FILE=$secrets/.*|\1|p"); do
  file=$(printenv "${name}_FILE")
  value=$(cat "$file") || value=
  case $value in
    "" | password | password1234 | admin | postgres | secret | test | change*me)
      echo "$file: the secret is missing, empty or a well-known default; remedy: run infra/compose/make-secrets.sh" >&2
      exit 78
      ;;
  esac
  export "$name=$value"
done
exec "$@"
