#!/usr/bin/env bash
# Creates the virtual environment $1 with Python 3.11 or 3.12.
#
# Takes the interpreter from $PYTHON when that is set, else the first one that
# fits. Leaves a working environment as it is. Debian ships `venv` without
# `ensurepip`: then pip from outside is used, or, as root, the missing package
# is installed.
set -euo pipefail

venv=${1:?usage: create_venv.sh DIRECTORY}

supported() {
  "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
    >/dev/null 2>&1
}

find_python() {
  if [[ -n "${PYTHON:-}" ]]; then
    supported "$PYTHON" && echo "$PYTHON" && return
    echo "PYTHON=$PYTHON is not a working Python 3.11 or 3.12." >&2
    return 1
  fi
  local candidate
  for candidate in python3.11 python3.12 python3 python; do
    if supported "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  cat >&2 <<EOF
rapo_jax needs Python 3.11 or 3.12, and none was found on the PATH.
Install one (Debian 12, as root: apt-get install python3 python3-venv) or name
one: make install PYTHON=/path/to/python3.11
EOF
  return 1
}

if "$venv/bin/python" -m pip --version >/dev/null 2>&1 &&
  supported "$venv/bin/python"; then
  exit 0
fi

python=$(find_python)
package=$("$python" -c \
  'import sys; print("python%d.%d-venv" % sys.version_info[:2])')

has_ensurepip() { "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; }

if ! has_ensurepip &&
  ! "$python" -c 'import pip, venv' >/dev/null 2>&1; then
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    cat >&2 <<EOF
$python cannot create virtual environments: its ensurepip module is missing.
Debian and Ubuntu keep it in a package of its own. As root:
  apt-get update && apt-get install $package
then run the same make command again.
EOF
    exit 1
  fi
  echo "Installing $package, without which $python creates no environments."
  export DEBIAN_FRONTEND=noninteractive
  if ! apt-get update ||
    ! apt-get install --yes --no-install-recommends "$package"; then
    echo "apt-get could not install $package. Install it by hand, or name an" \
      "interpreter that has ensurepip: make install PYTHON=/path/to/python" >&2
    exit 1
  fi
fi

echo "Creating $venv with $("$python" --version) ($python)."
if has_ensurepip; then
  "$python" -m venv --clear "$venv"
else
  "$python" -m venv --clear --without-pip "$venv"
  "$python" -m pip --python "$venv/bin/python" install pip
fi
