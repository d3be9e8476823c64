"""Asks the command line about bad input: each case in a forked child of a warm process that never imports torch.

``python -m tests.campaign.config_judge`` reads cases and writes answers, one JSON object a line.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ACCEPTED = 99
"""How a child exits that goes on to import torch: its input was taken for good."""
CPU_SECONDS = 30
"""Of a child; more is taken for hanging. The clock may run on while others work."""
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree",
          "socket.connect", "socket.bind", "subprocess.Popen", "os.system", "os.exec", "os.fork")  # fmt: skip


@dataclass
class Answer:
    """What a command line did: ``touched`` names files it wrote and everything else it should not have done."""

    code: int
    out: str
    err: str
    seconds: float
    cpu_seconds: float
    touched: list[str]


def ask(cases: Iterable[dict[str, Any]]) -> Iterator[Answer]:
    """The answer to each case, in order. A case has ``argv`` and ``files``, a dict of paths and texts."""
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    command = [sys.executable, "-m", "tests.campaign.config_judge"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile("w+") as given:
        given.write(lines)
        given.seek(0)
        with subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE, text=True, env=environment) as judge:
            assert judge.stdout is not None
            yield from (Answer(**json.loads(line)) for line in judge.stdout)


def ask_truly(case: dict[str, Any], folder: Path) -> Answer:
    """The answer of ``python run.py`` as a user starts it."""
    before = lay_out(case["files"], folder)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *case["argv"]], cwd=folder, capture_output=True, text=True, timeout=60
    )
    seconds = time.perf_counter() - start
    return Answer(done.returncode, done.stdout, done.stderr, seconds, seconds, sorted(listing(folder) - before))


def lay_out(files: dict[str, str], folder: Path) -> set[str]:
    """Write the files of a case, and list what is there."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1") if name.endswith(".latin1.yaml") else text.encode())
    return listing(folder)


def listing(folder: Path) -> set[str]:
    """Every path below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _judge(case: dict[str, Any], folder: Path) -> Answer:
    work = folder / "work"
    work.mkdir()
    before = lay_out(case["files"], work)
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        _be_asked(case["argv"], folder, work)
    code, cpu_seconds = _wait(child)
    seconds = time.perf_counter() - start
    out, err = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
    noted = (folder / "touched").read_text().split("\n")[:-1] if (folder / "touched").exists() else []
    return Answer(code, out, err, seconds, cpu_seconds, [*noted, *sorted(listing(work) - before)])


def _wait(child: int) -> tuple[int, float]:
    """How the child exits and the CPU time it takes."""
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def _be_asked(argv: list[str], folder: Path, work: Path) -> None:
    """In the child: answer, and never return."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        os.chdir(work)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
        notes = os.open(folder / "touched", os.O_WRONLY | os.O_CREAT)
        _watch(notes)
        from runner.config.main import main

        sys.argv = ["run.py"]
        code = main(argv)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(notes: int) -> None:
    """Note whatever writes or reaches out, and stop at the import of torch."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "import" and args[0] == "torch":
            os.write(notes, b"import torch\n")
            os._exit(ACCEPTED)
        opened = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if opened or event in WRITES:
            os.write(notes, f"{event} {args[0]}\n".encode())

    sys.addaudithook(hook)


def serve() -> None:
    """Answer every case on standard input."""
    from runner.config.arguments import parse_arguments
    from runner.config.check import check

    check(parse_arguments([]))  # reads the signatures, which stay known to every child
    scratch = Path(tempfile.mkdtemp())
    try:
        for number, line in enumerate(sys.stdin):
            folder = scratch / str(number)
            folder.mkdir()
            print(json.dumps(asdict(_judge(json.loads(line), folder))), flush=True)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    serve()
