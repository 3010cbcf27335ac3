# Sourced by the scripts beside it: makes sure of a virtual environment with syncer in it, built from this checkout.
#
# The environment is .venv in the checkout, or the folder SYNCER_VENV names. The package is installed editable, so
# changed Python sources need nothing; changed C sources or dependencies are noticed by the stamp and installed again.
# When nothing is missing this costs two short processes: no pip, no Python. Everything it says goes to stderr.

root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
venv=$(realpath -sm "${SYNCER_VENV:-$root/.venv}")

say() {
    echo "${0##*/}: $*" >&2
}

die() {
    say "$@"
    exit 1
}

# ensure_installed EXTRA [COMMAND=PACKAGE]...
#
# EXTRA is the optional dependencies wanted ("" for none, "test"); each COMMAND must be on PATH and comes from the
# Debian package PACKAGE. Returns when everything is there; ends the script with one line that names the remedy if not.
ensure_installed() {
    local extra=$1
    shift
    local stamp=$venv/.syncer-installed${extra:+-$extra}
    if ! is_current "$stamp" || ! has_commands "$@"; then
        install_all "$extra" "$stamp" "$@"
    fi
}

# What the installed package depends on: this checkout, the interpreter, what is compiled and what is declared.
stamp_text() {
    readlink -f "$venv/bin/python" || true
    sha256sum "$root/pyproject.toml" "$root/setup.py" "$root"/syncer/native/*.c
}

is_current() {
    local stamp=$1 extensions=("$root"/syncer/native/_scan.*.so)
    [[ -x $venv/bin/python && -x $venv/bin/syncer && -e ${extensions[0]} && -f $stamp ]] \
        && [[ $(stamp_text) == "$(<"$stamp")" ]]
}

has_commands() {
    local pair
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || return 1
    done
}

install_all() {
    local extra=$1 stamp=$2
    shift 2
    mkdir -p "$venv" || die "cannot make the virtual environment $venv; set SYNCER_VENV to a folder you may write to"
    (
        flock 9 # another script may be at it; then there is nothing left to do
        if ! is_current "$stamp" || ! has_commands "$@"; then
            install_system_packages "$@"
            install_package "$extra" "$stamp"
        fi
    ) 9>"$venv/.syncer-lock"
}

# --- system packages ---------------------------------------------------------------------------------------------

# The first Python on PATH that is new enough; nothing when there is none.
find_python() {
    local name
    for name in python3 python3.{11..19}; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
}

has_python_headers() {
    "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
}

# The Debian packages that are missing, one a line.
missing_packages() {
    local pair python
    for pair in gcc=gcc pkg-config=pkg-config fusermount3=fuse3 "$@"; do
        command -v "${pair%%=*}" >/dev/null || echo "${pair#*=}"
    done
    [[ -e /usr/include/stdio.h ]] || echo libc6-dev
    pkg-config --exists fuse3 2>/dev/null || echo libfuse3-dev
    python=$(find_python)
    if [[ -z $python ]]; then
        command -v python3 >/dev/null || printf '%s\n' python3-dev python3-venv
    else
        "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
        has_python_headers "$python" || echo python3-dev
    fi
}

install_system_packages() {
    local packages
    mapfile -t packages < <(missing_packages "$@" | sort -u)
    if ((${#packages[@]} == 0)); then
        return
    fi
    local become=()
    if ! command -v apt-get >/dev/null; then
        die "missing on this system; install what Debian calls: ${packages[*]}"
    elif ((EUID != 0)); then
        become=(sudo)
        if ! command -v sudo >/dev/null || { ! sudo -n true 2>/dev/null && ! [[ -t 0 && -t 2 ]]; }; then
            die "system packages are missing; run: apt-get install -y ${packages[*]} (as root), then this again"
        fi
    fi
    say "installing system packages: ${packages[*]}"
    # A new machine may have no package lists yet, an old one outdated lists: then they are fetched.
    local output install=("${become[@]}" env DEBIAN_FRONTEND=noninteractive
        apt-get install -qq -y --no-install-recommends "${packages[@]}")
    if ! output=$("${install[@]}" 2>&1); then
        "${become[@]}" apt-get update -qq >&2 || true
        if ! output=$("${install[@]}" 2>&1); then
            echo "$output" >&2
            die "installing system packages failed; the lines above say why"
        fi
    fi
    hash -r
}

# --- the virtual environment -------------------------------------------------------------------------------------

install_package() {
    local extra=$1 stamp=$2 python
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        [[ -n $python ]] || die "Python 3.11 or newer is needed, and there is none on PATH"
        has_python_headers "$python" || die "$python comes without its headers (Python.h), which are needed to build"
        "$python" -m venv "$venv" >&2 || die "cannot make the virtual environment $venv"
    fi
    say "installing syncer into $venv (this takes a minute the first time)"
    rm -f "$stamp" "$root"/syncer/native/_scan.*.so # or an object newer than its source would be taken for current
    "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --editable "$root${extra:+[$extra]}" >&2 \
        || die "installing failed; the lines above say why"
    stamp_text >"$stamp"
}
