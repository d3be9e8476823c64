"""What goes to MLflow beside numbers, and what must not."""

import pytest

from runner.loggers.mlflow_files import MAX_TRIES, Artifacts
from tests.loggers.parts import warnings_in


class Server:
    def __init__(self, fails=0, is_up=True):
        self.fails, self.is_up, self.taken = fails, is_up, []

    def get_run(self, run_id):
        if not self.is_up:
            raise OSError("no answer")

    def log_artifact(self, run_id, path, folder):
        if self.fails:
            self.fails -= 1
            raise OSError("not now")
        self.taken.append((path, folder))

    def log_text(self, run_id, text, name):
        self.taken.append((name, text))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run/videos").mkdir(parents=True)
    (tmp_path / "run/videos/a-1.mp4").write_bytes(b"video")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "run"


def waiting(folder, *lines):
    artifacts = Artifacts(folder)
    for line in lines:
        artifacts.add(line)
    return artifacts


def test_files_and_texts_are_sent_once(folder):
    artifacts, server = (
        waiting(folder, {"artifact": "videos/a-1.mp4"}, {"artifact": "h/x.json", "text": "{}"}),
        Server(),
    )
    artifacts.send(server, "r")
    artifacts.send(server, "r")
    assert server.taken == [(str(folder / "videos/a-1.mp4"), "videos"), ("h/x.json", "{}")]


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "videos/../../secret", ".hydra/config.yaml", "", "a//b", "a/", 7, "a\nb", "x" * 300],
)
def test_a_journal_cannot_name_a_file_from_elsewhere(folder, caplog, name):
    artifacts = waiting(folder, {"artifact": name})
    assert len(artifacts) == 0
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_out_of_the_folder_is_not_followed(folder, caplog, kind):
    if kind == "file":
        (folder / "videos/b.mp4").symlink_to(folder.parent / "secret")
        name = "videos/b.mp4"
    else:
        (folder / "more").symlink_to(folder.parent)
        name = "more/secret"
    artifacts, server = waiting(folder, {"artifact": name}), Server()
    artifacts.send(server, "r")
    assert (server.taken, len(artifacts), len(warnings_in(caplog))) == ([], 0, 1)


def test_one_that_the_server_never_takes_is_given_up_and_holds_up_no_other(folder, caplog):
    artifacts = waiting(folder, {"artifact": "videos/a-1.mp4"}, {"artifact": "h.json", "text": "{}"})
    server = Server(fails=MAX_TRIES)
    for _ in range(MAX_TRIES - 1):
        with pytest.raises(OSError, match="not now"):
            artifacts.send(server, "r")
    artifacts.send(server, "r")
    assert (server.taken, warnings_in(caplog)) == ([("h.json", "{}")], ["MLflow does not take videos/a-1.mp4: not now"])


def test_a_server_that_is_down_for_long_gets_all_of_them_later(folder):
    artifacts, server = waiting(folder, {"artifact": "videos/a-1.mp4"}), Server(is_up=False)
    for _ in range(3 * MAX_TRIES):
        with pytest.raises(OSError, match="no answer"):
            artifacts.send(server, "r")
    server.is_up = True
    artifacts.send(server, "r")
    assert len(server.taken) == 1
