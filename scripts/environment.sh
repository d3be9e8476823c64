# Sourced by scripts/run and scripts/test: makes and keeps .venv beside pyproject.toml.
#
# A stamp file in .venv says which pins it holds. It is written last and removed before anything is changed, so a
# .venv whose making was interrupted has none and is made anew.

say() { printf 'hookline: %s\n' "$*" >&2; }

die() {
    say "$@"
    exit 1
}

# What the stamp of a finished .venv contains. The folder is in it because a virtual environment cannot be moved.
stamp_text() {
    local version
    version=$("$venv/bin/python" -ISc 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 1
    printf 'python %s in %s, pins %s' "$version" "$root" "$(cat "$root/constraints.txt" "$root/pyproject.toml" | cksum)"
}

is_ready() { # extra
    local wanted
    [ -f "$venv/.stamp-$1" ] && wanted=$(stamp_text) && [ "$(cat "$venv/.stamp-$1")" = "$wanted" ]
}

check_python() {
    command -v "$python" >/dev/null || die "$python not found; Python 3.11 or newer is needed (PYTHON=/path/to/python3.11 names one)"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$("$python" -V 2>&1) is too old; Python 3.11 or newer is needed (PYTHON=/path/to/python3.11 names one)"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$python cannot make virtual environments; on Debian and Ubuntu: sudo apt install python3-venv"
}

# Empties .venv but for the lock that this process holds in it.
clear_venv() { find "$venv" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +; }

# Without byte-compiling, half of the time: Python does that itself for the small part of it that is ever imported.
pip_install() {
    "$venv/bin/python" -m pip install -qq --no-compile --disable-pip-version-check -c "$root/constraints.txt" "$@" ||
        die "installing failed, the lines above say why; nothing needs cleaning up before the next try"
}

# torch comes first and alone: its pin must hold before anything that depends on it is looked at. setuptools comes with
# it, so that the packages that must be built are built with a pinned version too.
install_pins() { # extra
    local torch
    torch=$(sed -n 's/^\(torch==[^ ;#]*\).*/\1/p' "$root/constraints.txt")
    pip_install "$torch" setuptools
    if [ "$1" = core ]; then
        pip_install --no-build-isolation -e "$root"
    else
        pip_install --no-build-isolation -e "$root[$1]"
    fi
}

# Where Python has been told not to write what it compiles, everything is compiled at once (some templates cannot be).
compile_all() {
    if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then
        "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >/dev/null 2>&1 || true
    fi
}

make_venv() { # extra
    local started=$SECONDS is_whole=
    if [ -f "$venv/.stamp-core" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then is_whole=1; fi
    rm -f "$venv"/.stamp-*
    if [ -n "$is_whole" ]; then
        say "installing what $venv lacks ($1)"
    else
        check_python
        say "making $venv with the pinned packages; this happens once and takes some minutes"
        clear_venv
        "$python" -m venv "$venv" >&2 || die "making $venv failed"
    fi
    install_pins "$1"
    compile_all
    stamp_text >"$venv/.stamp-core"
    [ "$1" = core ] || stamp_text >"$venv/.stamp-$1"
    say "ready in $((SECONDS - started)) s"
}

# Makes sure that .venv holds the pins of the core dependencies and of one extra; "core" means no extra.
ensure_environment() { # root extra
    root=$1 venv=$1/.venv python=${PYTHON:-python3}
    unset PYTHONHOME
    if is_ready "$2"; then return; fi
    mkdir -p "$venv"
    exec 9>"$venv/.lock"
    if command -v flock >/dev/null && ! flock -n 9; then
        say "another start is making $venv; waiting for it"
        flock 9
    fi
    is_ready "$2" || make_venv "$2"
    exec 9>&-
}
