#!/bin/sh
# Sets up .venv beside this file the first time, then serves the agent.
set -eu
export ORT_DISABLE_TELEMETRY=1
cd "$(dirname "$0")"
if [ ! -f .venv/.complete ]; then
    "${PYTHON:-python3}" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.txt
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-index ./@WHEEL@
    : > .venv/.complete
fi
exec .venv/bin/plato serve agent "$@"
