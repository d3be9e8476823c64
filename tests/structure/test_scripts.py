"""What scripts/run says where it cannot make its .venv, and that an installed package is whole."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from tests.structure.sources import ROOT

PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the real scripts and nothing installed."""
    shutil.copytree(ROOT / "scripts", tmp_path / "checkout/scripts")
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / "checkout")
    (tmp_path / "checkout/run.py").write_text("import os, sys\nprint(os.getcwd(), sys.argv[1:])\n")
    return tmp_path / "checkout"


def start(checkout, python, *arguments):
    """Start ``scripts/run`` from the folder beside the checkout, with this executable as Python."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python)}
    command = [checkout / "scripts/run", *arguments]
    return subprocess.run(command, cwd=checkout.parent, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sys.version_info = (3, 10, 9)", "Python 3.10.9 is too old; Python 3.11 or newer is needed"),
        ("sys.modules['ensurepip'] = None", "sudo apt install python3-venv"),  # so is Debian's without python3-venv
    ],
)
def test_an_unfit_python_is_refused_in_one_line(checkout, tmp_path, change, message):
    unfit = tmp_path / "python"
    lines = [
        "#!/bin/sh",
        '[ "$1" = -V ] && echo Python 3.10.9 && exit',
        f'exec {sys.executable} -c "import sys; {change}; $2"',
    ]
    unfit.write_text("\n".join(lines))
    unfit.chmod(0o755)
    done = start(checkout, unfit)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_python_is_refused_in_one_line(checkout):
    done = start(checkout, "/nowhere/python3")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "/nowhere/python3 not found; Python 3.11 or newer is needed" in done.stderr


def stamp(checkout):
    """Make a .venv that passes as finished, by the script's own functions."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    script = '. scripts/environment.sh; root=$PWD venv=$PWD/.venv; stamp_text > "$venv/.stamp-core"'
    subprocess.run(["bash", "-c", script], cwd=checkout, check=True)


def test_a_finished_venv_is_used_as_it_is_and_keeps_the_callers_folder(checkout):
    stamp(checkout)
    done = start(checkout, "/nowhere/python3", "algo=x", "a b")
    assert done.stdout == f"{checkout.parent} ['algo=x', 'a b']\n"
    assert done.stderr == ""


@pytest.mark.parametrize("change", ["constraints.txt", "pyproject.toml", "stamp", "python", "place"])
def test_an_unfinished_or_outdated_venv_is_not_used(checkout, change):
    stamp(checkout)
    if change == "stamp":
        (checkout / ".venv/.stamp-core").unlink()
    elif change == "python":
        (checkout / ".venv/bin/python").unlink()
    elif change == "place":
        checkout = checkout.rename(checkout.parent / "moved")
    else:
        with (checkout / change).open("a") as file:
            file.write("# changed\n")
    done = start(checkout, "/nowhere/python3")
    assert done.stdout == ""
    assert "/nowhere/python3 not found" in done.stderr


def test_every_declared_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {requirement.split("[")[0].split(">")[0] for requirement in declared}
    assert names - set(PINS) == set()
    assert "setuptools" in PINS  # scripts/run builds with it
    assert [
        version for version in PINS.values() if "+" in version
    ] == []  # a local tag such as +cpu holds on one index only


def test_an_installed_package_holds_every_module_and_every_yaml(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("runner", "hooks", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "README.md").write_text("# Hookline\n")
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("hookline-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info" not in name}
    files = [path for name in ("runner", "hooks", "conf") for path in (ROOT / name).rglob("*")]
    assert packed == {str(path.relative_to(ROOT)) for path in files if path.suffix in (".py", ".yaml")}
