#!/bin/sh
# Run a command with secrets in its environment: NAME_FILE=/run/secrets/x becomes NAME, with the content of the file.
# Images and compose files hold none. A secret that is missing, empty or a well-known default starts nothing.
set -eu
secrets=${SECRETS:-/run/secrets}
for name in $(env | sed -n "s|^\([A-Z][A-Z0-9_]*\)_FILE=$secrets/.*|\1|p"); do
  file=$(printenv "${name}_FILE")
  value=$(cat "$file") || value=
  case $value in
    "" | password | password1234 | admin | postgres | secret | test | change*me)
      echo "$file: empty, missing or a default; remedy: infra/compose/make-secrets.sh" >&2
      exit 78
      ;;
  esac
  export "$name=$value"
done
exec "$@"
