#!/bin/sh
# Write constraints.txt: the transitive closure of pyproject.toml for every supported Python and
# platform. Versions already pinned stay unless --upgrade is given.
set -eu
cd "$(dirname "$0")/.."
.venv/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
    --no-build-isolation --no-header --no-annotate --quiet --output-file constraints.txt "$@"
pins=$(cat constraints.txt)
{
    echo '# Exact versions that are tested, for Python 3.11-3.13 on every platform. Written by `make constraints`.'
    printf '%s\n' "$pins"
} >constraints.txt
