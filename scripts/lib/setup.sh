# Installs what pyunion needs on this machine and in .venv. Sourced by scripts/pyunion, scripts/test and
# scripts/debian-root; needs bash, coreutils and a Python >= 3.10, nothing else.
# What is already there is left alone, and a finished set-up is recognised by a stamp without asking apt or pip.
# shellcheck shell=bash

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$root/.venv
python=$venv/bin/python
# Two tests at a time, as much of each is waiting. Those of a file stay together for what they share, and the directory
# with the most files comes last, so that both workers end at about the same time.
pytest=(-m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder)

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root or sudo: $*"
    fi
}

# --- packages of the distribution -------------------------------------------------------------------

install_debian() {
    say "apt-get install $*"
    # A stale package list is worth a try: it may hold what is needed.
    as_root apt-get -qq update >&2 || say "apt-get update failed; going on with the package lists that are there"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" >&2
}

install_redhat() {
    say "dnf install $*"
    # debootstrap, which only the tests need, is in EPEL.
    [[ " $* " != *" debootstrap "* ]] || as_root dnf -q -y install epel-release >&2 || say "EPEL is not to be had"
    # strict=0: what no repository has is left out here, and named by the check that follows.
    as_root dnf -q -y --setopt=strict=0 install "$@" >&2
}

# install DEBIAN-PACKAGES REDHAT-PACKAGES, each as one word list
install() {
    local -a packages
    if command -v apt-get >/dev/null; then
        read -ra packages <<<"$1"
        install_debian "${packages[@]}"
    elif command -v dnf >/dev/null; then
        read -ra packages <<<"$2"
        install_redhat "${packages[@]}"
    else
        die "neither apt-get nor dnf is here; please install by hand what Debian calls: $1"
    fi
}

# The commands of a table with the lines COMMAND DEBIAN-PACKAGE REDHAT-PACKAGE that are not on this machine.
missing_commands() {
    local command _
    while read -r command _; do
        [[ -z $command ]] || command -v "$command" >/dev/null || printf '%s ' "$command"
    done <<<"$1"
}

# Install the packages of a table's commands that are missing. No subprocess where none is.
ensure_commands() {
    local table=$1 command debian redhat debian_list='' redhat_list=''
    while read -r command debian redhat; do
        [[ -z $command ]] || command -v "$command" >/dev/null && continue
        debian_list+=" $debian" redhat_list+=" $redhat"
    done <<<"$table"
    [[ $debian_list ]] || return 0
    install "$debian_list" "$redhat_list"
    hash -r
    local left
    left=$(missing_commands "$table")
    [[ -z $left ]] || die "no package repository of this machine provides: $left"
}

# --- Python -----------------------------------------------------------------------------------------

is_good_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

# The distribution's own Python comes first: its headers are a package, and it stays when a user's goes.
find_python() {
    local place name path
    for place in /usr/bin "$PATH"; do
        for name in python3 python3.13 python3.12 python3.11 python3.10; do
            path=$(PATH=$place type -P "$name") && is_good_python "$path" && echo "$path" && return
        done
    done
    return 1
}

ask_python() { "$1" -c "import sys, sysconfig; print($2)"; }

can_build_pyfuse3() { # PYTHON
    command -v cc >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists fuse3 &&
        [[ -e /usr/include/stdio.h ]] &&
        [[ -e $(ask_python "$1" "sysconfig.get_path('include')")/Python.h ]] &&
        "$1" -c 'import venv, ensurepip' 2>/dev/null
}

ensure_compiler() { # PYTHON
    can_build_pyfuse3 "$1" && return
    local version
    version=$(ask_python "$1" "'%d.%d' % sys.version_info[:2]")
    install "libfuse3-dev pkg-config gcc libc6-dev python$version-dev python$version-venv" \
        "fuse3-devel pkgconf-pkg-config gcc glibc-devel python$version-devel"
    can_build_pyfuse3 "$1" || die "pyfuse3 cannot be built with $1: libfuse 3 headers, a C compiler," \
        "or the headers or venv module of Python $version are missing"
}

# What a finished .venv was made from: the locked requirements, this script, and which Python.
fingerprint() {
    cat "$root"/requirements*.txt "$root/scripts/lib/setup.sh" "$root"/setup.py "$root"/pyunion/fuse/_wire.c \
        "$venv/pyvenv.cfg" | sha256sum
}

is_set_up() { # KIND
    [[ -x $python && -r $venv/.setup-$1 && $(<"$venv/.setup-$1") == "$(fingerprint)" ]]
}

pip_install() { "$python" -m pip --disable-pip-version-check --quiet install --require-hashes "$@" >&2; }

# ensure_venv KIND REQUIREMENTS: KIND is run or dev; what is installed for dev serves run as well
ensure_venv() {
    local kind=$1 requirements=$2 base
    is_set_up "$kind" && return
    # One set-up at a time; a second start waits here and then finds the work done.
    exec 9<"$root"
    flock 9
    if ! is_set_up "$kind"; then
        base=$(find_python) || die "no Python 3.10 or newer was found; install one" \
            "(for example: dnf install python3.11) and start again"
        ensure_compiler "$base"
        if ! { [[ -x $python ]] && is_good_python "$python"; }; then
            say "making .venv with $base"
            "$base" -m venv --clear "$venv"
        fi
        say "installing the locked Python packages into .venv (pyfuse3 is compiled: about a minute)"
        pip_install -r "$root/requirements-build.txt"
        pip_install --no-build-isolation -r "$root/$requirements"
        # `python -m pyunion` runs this checkout, from any directory.
        echo "$root" >"$(ask_python "$python" "sysconfig.get_path('purelib')")/pyunion.pth"
        say "building the extension pyunion.fuse._wire"
        (cd "$root" && "$python" setup.py --quiet build_ext --inplace >&2)
        fingerprint >"$venv/.setup-run"
        [[ $kind == run ]] || fingerprint >"$venv/.setup-$kind"
        say "done"
    fi
    exec 9<&-
}

# What it takes to run pyunion from this checkout.
ensure_pyunion() {
    ensure_commands 'fusermount3 fuse3 fuse3'
    ensure_venv run requirements.txt
}
