"""A tracking server that answers to do harm: to whoever asks it, or to those it sends them to."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.campaign.hostile import MLFLOW, SECRET, Payload

HOSTILE_TEXT = "\x1b]0;title\x07\n$(touch executed)"
MIB = 2**20


class _Handler(BaseHTTPRequestHandler):
    """The first part of the path names the answer."""

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        _, name, *rest = urlsplit(self.path).path.split("/")
        status, headers, body = _ANSWERS[name]("/".join(rest))
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


Answer = tuple[int, dict[str, str], bytes]


def _redirect(location: str) -> Callable[[str], Answer]:
    return lambda path: (302, {"Location": location}, b"")


def _text(body: bytes, status: int = 200) -> Callable[[str], Answer]:
    return lambda path: (status, {}, body)


def _run(**fields: Any) -> Callable[[str], Answer]:
    """A server that knows every run and every experiment, with some odd facts about them."""
    experiment = {"experiment_id": "1", "name": "x", "artifact_location": "file:///etc", "lifecycle_stage": "active"}
    info = {
        "run_id": "a" * 32,
        "run_uuid": "a" * 32,
        "experiment_id": "1",
        "status": "RUNNING",
        "start_time": 1,
        "lifecycle_stage": "active",
        "artifact_uri": "file:///etc",
    }
    data = fields.pop("data", {})
    run = {"info": {**info, **fields}, "data": data}
    body = {"experiment": experiment, "run": run, "runs": [run], "run_info": run["info"], "experiment_id": "1"}
    return lambda path: (
        200,
        {},
        json.dumps(body | {"metrics": [{"key": "x", "value": 1, "step": 1, "timestamp": 1}]}).encode(),
    )


def _slowly(path: str) -> Answer:
    time.sleep(3)
    return 500, {}, b"{}"


_METRICS = [{"key": f"x{n}", "value": 1.0, "step": n, "timestamp": n} for n in range(20_000)]
_ANSWERS: dict[str, Callable[[str], Answer]] = {
    "to-a-file": _redirect(f"file:///{SECRET}/bashrc"),
    "to-etc": _redirect("file:///etc/passwd"),
    "to-another-host": _redirect("http://127.0.0.2:9/"),
    "to-itself": lambda path: (302, {"Location": "/to-itself/x"}, b""),
    "to-gopher": _redirect("gopher://127.0.0.1:9/"),
    "to-an-escape": _redirect("http://\x1b[2J/"),
    "not-json": _text(b"<html>"),
    "deep": _text(b"[" * 10**6),
    "nan": _text(b'{"run": NaN}'),
    "a-list": _text(b"[1]"),
    "null": _text(b"null"),
    "an-error": _text(json.dumps({"error_code": HOSTILE_TEXT, "message": HOSTILE_TEXT * 10_000}).encode(), 400),
    "a-pickle": _text(b"cos\nsystem\n(S'touch executed'\ntR."),
    "8-mb": _text(b'{"x": "' + b"y" * (8 * MIB) + b'"}'),
    "an-id-like-a-path": _run(run_id="../../../etc", run_uuid="../../../etc"),
    "an-id-with-escapes": _run(run_id=HOSTILE_TEXT),
    "an-id-of-a-megabyte": _run(run_id="a" * MIB),
    "an-id-that-is-a-number": _run(run_id=7),
    "no-id": _run(run_id=None),
    "many-metrics": _run(data={"metrics": _METRICS}),
    "odd-metrics": _run(data={"metrics": [{"key": HOSTILE_TEXT, "value": "NaN"}]}),
    "odd-parameters": _run(data={"params": [{"key": "__class__", "value": HOSTILE_TEXT}]}),
    "slow": _slowly,
}


def server_payloads(port: int) -> Iterator[Payload]:
    """One for each answer of the server at ``port``; nothing but that server may be asked."""
    for name in _ANSWERS:
        address = f"logger.mlflow.tracking_uri=http://127.0.0.1:{port}/{name}"
        yield Payload(
            "server",
            name,
            lambda run: None,
            (address,),
            template=MLFLOW,
            expect=("refused", "harmless"),
            addresses=(("127.0.0.1", port),),
        )


@contextmanager
def hostile_server() -> Iterator[int]:
    """A process that serves; its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    pid = os.fork()
    if pid == 0:
        try:
            server.serve_forever()
        finally:
            os._exit(0)
    server.server_close()
    try:
        yield server.server_port
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
