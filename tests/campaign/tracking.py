"""Tracking servers for tests: MLflow's own, a light one that counts everything twice, and a proxy that misbehaves."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

LOG_BATCH = "runs/log-batch"
Values = Counter[tuple[str, int, str]]
"""How often there is a value: by metric, step, and the value as text."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RealServer:
    """A ``mlflow server`` process with a copy of an SQLite file that has MLflow's tables."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        (folder / "server.db").write_bytes(database.read_bytes())
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
        with open(folder / "server.log", "w") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait(folder / "server.log")

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.1)
        raise TimeoutError(log.read_text())

    def values_of(self, run_id: str) -> Values:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.uri)
        names = client.get_run(run_id).data.metrics
        history = [value for name in names for value in client.get_metric_history(run_id, name)]
        return Counter((value.key, value.step, repr(value.value)) for value in history)

    def status_of(self, run_id: str) -> str:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri).get_run(run_id).info.status

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class LightServer:
    """As much of MLflow's protocol as a run needs, where a value that comes twice is kept twice.

    With ``has_database`` it is not, if its metric, step, time and value are the same, as in MLflow on a database.
    ``refused`` are names of metrics whose batches it answers with an error of the client's.
    """

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.metrics: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.refused: set[str] = set()
        self.has_database = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port = self._server.server_port
        self.uri = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def values_of(self, run_id: str) -> Values:
        return Counter((value["key"], value["step"], repr(float(value["value"]))) for value in self.metrics[run_id])

    def status_of(self, run_id: str) -> str:
        return self.runs[run_id]["info"]["status"]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                place = urlsplit(self.path)
                body |= dict(parse_qsl(place.query))
                code, reply = server.reply(place.path.rpartition("/mlflow/")[2], body)
                raw = json.dumps(reply).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, *words: Any) -> None:
                pass

        return Handler

    def reply(self, what: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The answer to one request of MLflow's protocol."""
        missing = 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "there is no such thing"}
        if what == "experiments/get-by-name":
            found = self.experiments.get(body["experiment_name"])
            return (200, {"experiment": {"experiment_id": found, "lifecycle_stage": "active"}}) if found else missing
        if what == "experiments/create":
            return 200, {"experiment_id": self.experiments.setdefault(body["name"], str(len(self.experiments) + 1))}
        if what == "runs/create":
            return 200, {"run": self._create(body)}
        if what == "runs/search":
            return 200, {"runs": self._search(body["filter"].rpartition(" = ")[2].strip("'"))}
        run = self.runs.get(body.get("run_id") or body.get("run_uuid") or "")
        return (200, self._of_run(what, run, body)) if run and not self._is_refused(body) else self._no(run, missing)

    def _search(self, value: str) -> list[dict[str, Any]]:
        """The runs with a tag of that value, the newest first."""
        active = [run for run in self.runs.values() if run["info"]["lifecycle_stage"] == "active"]
        found = [run for run in reversed(active) if value in [tag["value"] for tag in run["data"]["tags"]]]
        return [self._of_run("runs/get", run, {})["run"] for run in found]

    def _no(self, run: Any, missing: tuple[int, dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        return (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "not this one"}) if run else missing

    def _is_refused(self, body: dict[str, Any]) -> bool:
        return any(metric["key"] in self.refused for metric in body.get("metrics", ()))

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        info = {"run_id": uuid.uuid4().hex, "status": "RUNNING", "lifecycle_stage": "active"}
        run = {"info": info | {"experiment_id": body["experiment_id"]}, "data": {"tags": body.get("tags", [])}}
        return self.runs.setdefault(info["run_id"], run)

    def _of_run(self, what: str, run: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        values = self.metrics[run["info"]["run_id"]]
        if what == LOG_BATCH:
            values += [one for one in body.get("metrics", []) if not (self.has_database and one in values)]
            run["data"].setdefault("params", []).extend(body.get("params", []))
        elif what == "runs/update":
            run["info"]["status"] = body.get("status", run["info"]["status"])
            return {"run_info": run["info"]}
        elif what == "runs/set-tag":
            others = [tag for tag in run["data"]["tags"] if tag["key"] != body["key"]]
            run["data"]["tags"] = [*others, {"key": body["key"], "value": body["value"]}]
        elif what == "metrics/get-history":
            return {"metrics": [value for value in values if value["key"] == body["metric_key"]]}
        elif what == "runs/delete":
            run["info"]["lifecycle_stage"] = "deleted"
        latest = {value["key"]: value for value in values}
        return {"run": {**run, "data": {**run["data"], "metrics": [*latest.values()]}}}


Script = Callable[[int, str, float], str]
"""What happens to a request, by its number, what it asks for, and the seconds since the proxy was set up.

``pass``; ``fail`` and ``fail after`` (error 500 and 502, the latter once the server has done what was asked); ``lose``
(it has, and no answer comes); ``tear`` (half of one comes); ``garble``; ``lie`` (a good answer, nothing is done);
``slow`` (it takes three seconds); ``hang``; ``refuse`` (the connection is closed).
"""


class Proxy:
    """Stands between a run and a server, and does to each request what ``script`` says; ``counts`` how often."""

    def __init__(self, port: int, script: Script) -> None:
        self.script = script
        self.counts: Counter[str] = Counter()
        self._port, self._begun, self._requests, self._lock = port, time.monotonic(), 0, threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def faults(self) -> int:
        """How many requests did not just pass."""
        return sum(self.counts.values()) - self.counts["pass"]

    def choose(self, path: str) -> str:
        with self._lock:
            action = self.script(self._requests, path, time.monotonic() - self._begun)
            self._requests += 1
            self.counts[action] += 1
        return action

    def ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """What the server says."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                action = proxy.choose(self.path)
                if action in ("slow", "hang"):
                    time.sleep(3 if action == "slow" else 30)
                if action in ("refuse", "hang"):
                    return
                if action in ("fail", "lie"):
                    return (
                        self.say(500, b'{"error_code": "INTERNAL_ERROR"}') if action == "fail" else self.say(200, b"{}")
                    )
                code, reply = proxy.ask(self.command, self.path, body)
                if action == "fail after":
                    self.say(502, b"<html>Bad gateway</html>")
                elif action == "garble":
                    self.say(200, b'{"run": [[[{"info": 7, "\xff\xfe')
                elif action == "tear":
                    self.say(code, reply[: len(reply) // 2], len(reply) + 10)
                elif action != "lose":
                    self.say(code, reply)

            def say(self, code: int, reply: bytes, length: int | None = None) -> None:
                with suppress(OSError):  # who asked may have lost patience
                    self.send_response(code)
                    self.send_header("Content-Length", str(len(reply) if length is None else length))
                    self.end_headers()
                    self.wfile.write(reply)

            do_GET = do_POST = do_PATCH = answer  # noqa: N815

            def log_message(self, *words: Any) -> None:
                pass

        return Handler
