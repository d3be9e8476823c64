"""An audit hook that notes everything a run may not do: run foreign code, connect, start programs, write elsewhere."""

import hashlib
import importlib.util
import os
import socket
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NEVER = (
    "subprocess.Popen", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.startfile", "os.fork", "os.forkpty",
    "pty.spawn", "webbrowser.open", "urllib.Request", "ctypes.", "pickle.find_class", "marshal.", "code.__new__",
    "socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostby",
    "sqlite3.enable_load_extension", "sqlite3.load_extension", "signal.pthread_kill", "ftplib.", "smtplib.",
    "os.mkfifo", "os.setxattr", "os.chroot", "syslog.", "cpython.remote_debugger_script", "sys.setprofile",
)  # fmt: skip
"""Events, or beginnings of their names, that are never right in a run that is resumed."""
PATHS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.mkdir": ((0, 2),), "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.chmod": ((0, 2),), "os.utime": ((0, 3),),
    "os.rename": ((0, 2), (1, 3)), "os.link": ((0, 2), (1, 3)), "os.symlink": ((1, 2),), "shutil.rmtree": ((0, 1),),
    "os.truncate": ((0, None),), "shutil.move": ((0, None), (1, None)), "sqlite3.connect": ((0, None),),
}  # fmt: skip
"""Events that change files: where among the arguments the paths are, and the open folders they may be relative to."""
FOLLOWING = ("open", "os.truncate", "os.chmod", "os.utime", "sqlite3.connect")
"""Of these, those that change what a link leads to; the others change the link."""
SENDER = ["-P", "-m", "runner.loggers.mlflow_sender"]
ABOUT_THE_MACHINE = ["uname", "-p"]
"""What Python's own ``platform`` starts."""


def installed_folders() -> tuple[str, ...]:
    """Where code may come from: Python, its packages, and this repository."""
    paths = sysconfig.get_paths()
    folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {str(ROOT), sys.base_prefix}
    return tuple(sorted({os.path.realpath(folder) + os.sep for folder in folders}))


def fingerprint(code: CodeType) -> str:
    """Tells apart pieces of code that are all called ``<string>``."""
    parts = (code.co_code, code.co_names, code.co_varnames, [c for c in code.co_consts if not isinstance(c, CodeType)])
    inner = [fingerprint(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return hashlib.sha256(repr((parts, inner)).encode()).hexdigest()[:16]


@dataclass
class Known:
    """What a plain resume does that only its own record can tell from an attack."""

    modules: set[str] = field(default_factory=set)
    pieces: set[str] = field(default_factory=set)  # fingerprints of code made of strings


class Watch:
    """Notes events in ``seen``; with ``learning`` what it would object to goes into ``known`` instead.

    Args:
        writable: folders (and files, with what is called alike) where a run may write.
        secret: folders and files that it may not even read.
        addresses: hosts and ports that it may connect to.
    """

    def __init__(
        self,
        writable: Iterable[Path],
        known: Known,
        secret: Iterable[Path] = (),
        addresses: Iterable[tuple[str, int]] = (),
        learning: bool = False,
    ) -> None:
        self.seen: list[str] = []
        self.known, self.learning = known, learning
        self._writable = tuple(os.path.realpath(path) for path in writable)
        self._secret = tuple(os.path.realpath(path) for path in secret) or ("\0",)
        self._installed = installed_folders()
        self._judges: dict[str, Callable[[tuple[Any, ...]], str | None]] = {
            "import": self._import, "exec": self._exec, "compile": self._compile, "open": self._open,
            "os.kill": self._kill, "socket.__new__": self._socket, "socket.connect": self._connect,
            "socket.getaddrinfo": self._look_up, "subprocess.Popen": self._start,
        }  # fmt: skip
        self._judges |= {event: partial(self._change_of, event) for event in PATHS}
        self._addresses = set(addresses)
        self._judging = threading.local()

    def install(self) -> None:
        """From now on, for ever: no hook can be taken out."""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        judge = self._judges.get(event)
        if getattr(self._judging, "now", False) or (judge is None and not event.startswith(NEVER)):
            return
        self._judging.now = True  # what judging takes is not judged
        try:
            objection = judge(args) if judge else self._never(event, args)
        except Exception as error:  # an event that cannot be judged counts
            objection = f"{type(error).__name__}: {error}"
        finally:
            self._judging.now = False
        if objection:
            self.seen.append(f"{event} {objection}"[:300])

    def _never(self, event: str, args: tuple[Any, ...]) -> str | None:
        """Libraries call functions of C; which ones, and from where, a plain resume shows."""
        caller = sys._getframe(2).f_code
        name = args[-1] if args and isinstance(args[-1], str) else ""
        if event.startswith("ctypes.") and self._is_known(f"{event} {name} {caller.co_filename}:{caller.co_name}"):
            return None
        return None if self._is_reading_code(event) else repr(args)

    def _is_known(self, piece: str) -> bool:
        if self.learning:
            self.known.pieces.add(piece)
        return piece in self.known.pieces

    def _is_reading_code(self, event: str) -> bool:
        """Whether Python itself is loading a module of those installed; what it then runs is judged on its own."""
        return event.startswith("marshal.load") and sys._getframe(3).f_code.co_filename.startswith("<frozen importlib")

    def _import(self, args: tuple[Any, ...]) -> str | None:
        name = args[0]
        if self.learning:
            self.known.modules.add(name)
        return None if name in self.known.modules else name

    def _exec(self, args: tuple[Any, ...]) -> str | None:
        code = args[0]
        if not isinstance(code, CodeType):
            return repr(code)
        if self._is_installed(code.co_filename):
            return None
        piece = fingerprint(code)
        return None if self._is_known(piece) else f"{code.co_filename} {piece} {code.co_names}"

    def _compile(self, args: tuple[Any, ...]) -> str | None:
        """``ast.parse`` calls its text unknown and runs nothing; the rest is judged when it is run, if it ever is."""
        name = args[1].decode() if isinstance(args[1], bytes) else str(args[1])
        is_text = isinstance(args[0], str | bytes) and name not in ("<unknown>", "<string>")
        return name if is_text and not self._is_known(name) and not self._is_installed(name) else None

    def _is_installed(self, name: str) -> bool:
        if name.startswith("<frozen "):
            return True
        if os.sep in name:
            return os.path.realpath(name).startswith(self._installed)
        # Annotations are evaluated under the name of their module.
        spec = importlib.util.find_spec(name) if name in sys.modules else None
        return bool(spec and spec.origin and os.path.realpath(spec.origin).startswith(self._installed))

    def _open(self, args: tuple[Any, ...]) -> str | None:
        path, _, flags = args
        if isinstance(path, int):
            return None
        if flags & WRITING:
            return self._change("open", args, ((0, None),))
        return repr(path) if os.path.realpath(os.fsdecode(path)).startswith(self._secret) else None

    def _change_of(self, event: str, args: tuple[Any, ...]) -> str | None:
        return self._change(event, args, PATHS[event])

    def _change(self, event: str, args: tuple[Any, ...], which: tuple[tuple[int, int | None], ...]) -> str | None:
        places = [(args[path], args[folder] if folder is not None else -1) for path, folder in which]
        bad = [path for path, folder in places if not self._is_writable(event, path, folder)]
        return " ".join(map(repr, bad)) or None

    def _is_writable(self, event: str, path: Any, folder: int | None) -> bool:
        if isinstance(path, int):
            return True
        name = os.fsdecode(path)
        if folder is not None and folder >= 0:
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
        parent, last = os.path.split(os.path.abspath(name))
        real = os.path.realpath(name) if event in FOLLOWING else os.path.join(os.path.realpath(parent), last)
        beside = (os.sep, "-", ".")
        if real == os.devnull or (event == "os.mkdir" and os.path.isdir(real)):
            return True
        return any(real == one or real.startswith(tuple(one + more for more in beside)) for one in self._writable)

    def _kill(self, args: tuple[Any, ...]) -> str | None:
        return repr(args) if args[1] != 0 else None

    def _start(self, args: tuple[Any, ...]) -> str | None:
        """Only the process that sends metrics to MLflow."""
        executable, argv = os.fsdecode(args[0]), [os.fsdecode(word) for word in args[1]]
        is_sender = executable == sys.executable and argv[1:4] == SENDER
        return None if is_sender or argv == ABOUT_THE_MACHINE else repr(argv)

    def _socket(self, args: tuple[Any, ...]) -> str | None:
        """Event loops talk to themselves through a pair of local sockets; those connect to nothing else."""
        return None if args[1] == socket.AF_UNIX or self._addresses else repr(args[1:])

    def _connect(self, args: tuple[Any, ...]) -> str | None:
        return None if args[1] in self._addresses else repr(args[1])

    def _look_up(self, args: tuple[Any, ...]) -> str | None:
        return None if args[:2] in self._addresses else repr(args[:2])
