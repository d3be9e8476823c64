import io
import os
import pty
import termios

import pytest

from hooks.progress_bar import ProgressBar
from tests.toys import Counter, collector, environment, trainer


def shown(total_frames=40, before=0, **options):
    one, hook = trainer(total_frames, **options), ProgressBar()
    one.progress.env_steps = one.progress.frames = before
    one.register_op(
        "pre_steps_log", lambda batch: {"train/return_mean": 12.345, "train/epsilon": 0.5, "log_pbar": True}
    )
    hook.register(one)
    one.train()
    return hook


def test_without_a_terminal_each_tenth_is_a_line(capsys):
    shown(40).close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("%")[0].split() for line in lines] == [
        [str(step), "steps", str(step * 100 // 40)] for step in range(4, 41, 4)
    ]
    assert "return 12.3  epsilon 0.5  loss " in lines[0]


def test_long_runs_do_not_print_more_than_eleven_lines(capsys):
    shown(400).close()
    assert len(capsys.readouterr().err.splitlines()) == 11  # 0 % to 100 %


def test_the_last_batch_may_go_beyond_the_end(capsys):
    shown(10, stop_after={"env_steps": 100}).close()
    assert "12 steps  100 %" in capsys.readouterr().err.splitlines()[-1]


def on_a_terminal(monkeypatch, **options):
    """The hook after a run whose stderr is a terminal, and what was written to it."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 120))
    with os.fdopen(slave, "w") as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        hook = shown(**options)
        hook.close()
    return hook, read_all(master)


def read_all(master):
    """What was written to a terminal that is closed at its other end."""
    written = b""
    try:
        while piece := os.read(master, 100_000):
            written += piece
    except OSError:  # how Linux says that nothing is left
        pass
    os.close(master)
    return written.decode()


@pytest.mark.pins("ProgressBar")
def test_on_a_terminal_there_is_a_bar(monkeypatch):
    _, written = on_a_terminal(monkeypatch)
    last = written.replace("\n", "\r").rstrip("\r").split("\r")[-1]
    assert "100%" in last
    assert "40/40" in last
    assert "return=12.3, epsilon=0.5, loss=" in last


@pytest.mark.pins("ProgressBar", excludes="a resumed bar begins at 0")
def test_the_bar_starts_where_the_run_is(monkeypatch):
    hook, written = on_a_terminal(monkeypatch, before=20)
    assert (hook._bar.initial, hook._bar.n, hook._bar.total) == (20, 40, 40)
    assert " 20/40" in written
    assert " 0/40" not in written


def test_the_bar_counts_env_steps_not_frames(monkeypatch):
    playing = collector(environment(Counter, frame_skip=3))
    hook, _ = on_a_terminal(monkeypatch, total_frames=48, collector=playing, frame_skip=3)
    assert (hook._bar.n, hook._bar.total) == (16, 16)


def test_a_bar_that_never_began_can_be_closed():
    ProgressBar().close()


def test_a_stream_that_is_no_terminal_gets_no_control_characters(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    shown(40).close()
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
