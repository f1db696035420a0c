#!/bin/sh
# Create .venv with what constraints.txt pins. `make setup` calls this; PYTHON names the interpreter.
# `setup.sh run` installs what `make run` needs, and nothing for development.
set -eu
cd "$(dirname "$0")/.."
venv=.venv
case "${1:-}" in
run) extras=build,translation ;;
*) extras=build,dev,docs,hf,language,lightning,optimizers,postgresql,ray,s3,translation,vision ;;
esac

fail() {
    echo "setup: $1" >&2
    exit 1
}

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

if ! supported $venv/bin/python; then
    python=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if supported "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "Python 3.11, 3.12 or 3.13 is needed, and ${PYTHON:-python3} is \
$("${PYTHON:-python3}" --version 2>&1 || true); say which one: make setup PYTHON=/path/to/python3.12"
    "$python" -m venv --clear $venv ||
        fail "$python cannot create virtual environments (Debian, Ubuntu: apt install python3-venv)"
fi

# fairseq-fixed is compiled here, unless its index has a wheel for this Python.
command -v "${CXX:-c++}" >/dev/null ||
    fail "a C++ compiler is needed (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)"
$venv/bin/python -c 'import os, sysconfig as s, sys
sys.exit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))' ||
    fail "Python's C headers are needed (Debian, Ubuntu: apt install python3-dev)"

$venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv

# uv does not read pip's settings: hand on a mirror that is set there.
mirror=${PIP_INDEX_URL:-$($venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
if [ -n "$mirror" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then
    export UV_DEFAULT_INDEX="$mirror"
fi

# Everything is built with the pinned tools of this environment, so they come first. Isolated
# builds would fetch newer ones, among them a second torch.
install() {
    $venv/bin/uv pip install --python $venv/bin/python --constraint constraints.txt \
        --no-build-isolation "$@"
}
install --requirement pyproject.toml --extra build

# Most of fairseq's build is C++ extensions that nothing here calls: no optimisation for them (the
# ones that matter carry their own -O3), all of them at once. The stub hides ninja from torch's
# build: parallel extensions would overwrite each other's build.ninja. No CUDA extensions.
project=".[$extras]"
quick=$(mktemp -d)
trap 'rm -rf "$quick"' EXIT
printf '#!/bin/sh\nexit 1\n' >"$quick/ninja"
chmod +x "$quick/ninja"
printf '[build_ext]\nparallel = %s\n' "$(getconf _NPROCESSORS_ONLN)" >"$quick/distutils.cfg"
(
    unset CUDA_HOME
    export PATH="$quick:$PATH" DIST_EXTRA_CONFIG="$quick/distutils.cfg" TORCH_NO_COMPILER_WRAPPER=1
    export CFLAGS='-O0 -g0 -fwrapv -DNDEBUG' CXXFLAGS='-O0 -g0 -fwrapv -DNDEBUG'
    install --editable "$project"
) || (
    echo 'setup: the quick build failed; once more with default settings' >&2
    unset CUDA_HOME
    install --editable "$project"
)

# Proves that it works, and writes the bytecode of what every command imports.
(
    unset PYTHONDONTWRITEBYTECODE
    $venv/bin/python .ci/try_imports.py "$extras"
)
