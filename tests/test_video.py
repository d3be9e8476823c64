import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from runner.loggers.csv import CSVLogger
from runner.record.video import VideoRecorder
from runner.spec import ConfigError
from runner.video import Mp4Writer, grid, read_video, write_mp4


def moving(t, height=48, width=64):
    """A white bar that is at column ``2 t``."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, 2 * t % width : 2 * t % width + 8] = 255
    return picture


def described(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        seconds = float(stream.duration * stream.time_base)
        context = stream.codec_context
        return context.name, context.pix_fmt, context.width, context.height, float(stream.average_rate), seconds


@pytest.mark.pins("VideoRecorder")
def test_an_mp4_is_h264_that_browsers_play_and_its_pictures_move(tmp_path):
    writer = Mp4Writer(tmp_path / "a.mp4", fps=25)
    for t in range(20):
        writer.add(moving(t))
        assert not (tmp_path / "a.mp4").exists()  # never half there
    assert writer.close() == tmp_path / "a.mp4"
    assert described(tmp_path / "a.mp4") == ("h264", "yuv420p", 64, 48, 25.0, 20 / 25)
    pictures = list(read_video(tmp_path / "a.mp4"))
    assert len(pictures) == 20
    for t in (0, 7, 19):
        assert abs(pictures[t].astype(int) - moving(t)).mean() < 6
        assert abs(pictures[t].astype(int) - moving((t + 9) % 20)).mean() > 20
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    head = (tmp_path / "a.mp4").read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # plays before all of it has been loaded


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((3, 31, 47), (48, 32)),
        ((31, 47, 3), (48, 32)),
        ((31, 47), (48, 32)),
        ((1, 30, 40), (40, 30)),
        ((30, 40, 1), (40, 30)),
    ],
)
def test_pictures_of_any_layout_and_odd_sizes_are_taken(tmp_path, shape, size):
    writer = Mp4Writer(tmp_path / "a.mp4")
    writer.add(torch.full(shape, 200, dtype=torch.uint8))
    writer.close()
    assert described(tmp_path / "a.mp4")[2:4] == size
    assert abs(next(read_video(tmp_path / "a.mp4")).astype(int) - 200).max() < 8


def test_a_whole_video_may_be_several_side_by_side(tmp_path):
    video = torch.zeros(3, 5, 3, 16, 16, dtype=torch.uint8)
    video[1] = 255
    write_mp4(tmp_path / "a.mp4", video, fps=5)
    picture = next(read_video(tmp_path / "a.mp4"))
    assert picture.shape == (32, 32, 3)
    quarters = [picture[:16, :16], picture[:16, 16:], picture[16:, :16], picture[16:, 16:]]
    assert [part[4:-4, 4:-4].mean() > 128 for part in quarters] == [False, True, False, False]


def test_a_grid_is_as_square_as_it_can_be():
    pictures = [np.full((2, 3, 3), index, np.uint8) for index in range(1, 6)]
    assert grid(pictures)[::2, ::3, 0].tolist() == [[1, 2, 3], [4, 5, 0]]


@pytest.mark.parametrize(
    ("video", "words"),
    [
        (np.zeros((4, 3, 8, 8), np.float32), "of uint8"),
        (np.zeros((4, 2, 8, 8), np.uint8), "1 or 3 channels"),
        (np.zeros((8, 8, 3), np.uint8), r"\[T, C, H, W\]"),
        (np.zeros((0, 3, 8, 8), np.uint8), "at least one picture"),
    ],
)
def test_what_is_no_video_is_refused_in_a_line_and_leaves_nothing(tmp_path, video, words):
    with pytest.raises(ValueError, match=words):
        write_mp4(tmp_path / "a.mp4", video)
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_another_size_are_refused(tmp_path):
    writer = Mp4Writer(tmp_path / "a.mp4")
    writer.add(moving(0))
    with pytest.raises(ValueError, match="have one size"):
        writer.add(moving(0, 32))
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


MEMORY = """
import resource, sys
import numpy as np
from runner.video import Mp4Writer
writer = Mp4Writer(sys.argv[1], fps=50)
noise = np.random.default_rng(0).integers(0, 255, (400, 600, 3), dtype=np.uint8)
def add(count):
    for t in range(count):
        writer.add(np.roll(noise // 8 + t % 100, t, 1))
add(300)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
add(int(sys.argv[2]) - 300)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
writer.close()
"""


@pytest.mark.slow
@pytest.mark.pins("VideoRecorder", excludes="all frames are held in memory until the video is dumped")
def test_the_memory_for_5000_pictures_is_that_for_300(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "a.mp4", "5000"], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 32  # MiB; the pictures alone have 3433
    assert described(tmp_path / "a.mp4")[5] == 100.0


@pytest.mark.pins("VideoRecorder", excludes="the video is never dumped, or under no name of its own")
def test_a_recorder_takes_pictures_from_tensordicts_and_hands_the_file_to_its_logger(tmp_path):
    logger = CSVLogger("e", tmp_path)
    recorder = VideoRecorder(logger, "run", fps=10)
    for t in range(10):
        data = TensorDict({"pixels": torch.from_numpy(moving(t)).permute(2, 0, 1)})
        assert recorder(data) is data
    (path,) = recorder.dump(1000)
    assert path == tmp_path / "e/videos/run-1000.mp4"
    assert len(list(read_video(path))) == 5  # every other one, as the page has it
    assert logger.last_step == 1000
    assert recorder.dump(2000) == []


def test_a_recorder_skips_cuts_and_shows_several_environments_side_by_side(tmp_path):
    recorder = VideoRecorder(run=tmp_path, tag="many", in_keys=["a", "b"], max_frames=4)
    for t in range(7):
        recorder({"a": np.stack([moving(t)] * 3), "b": moving(t)})
    paths = recorder.dump()
    assert [path.name for path in paths] == ["many_a-0.mp4", "many_b-0.mp4"]
    sizes = [(len(pictures := list(read_video(path))), pictures[0].shape) for path in paths]
    assert sizes == [(4, (96, 128, 3)), (4, (48, 64, 3))]
    recorder({"a": moving(0), "b": moving(0)})
    assert [path.name for path in recorder.dump()] == ["many_a-1.mp4", "many_b-1.mp4"]
    other = VideoRecorder(run=tmp_path)
    other.load_state_dict(recorder.state_dict())
    assert other.count == 2


def test_a_recorder_that_is_given_up_leaves_nothing(tmp_path):
    recorder = VideoRecorder(run=tmp_path)
    for t in range(200):
        recorder(moving(t))
    assert [path.name for path in (tmp_path / "videos").iterdir()] == [".video-unnamed.mp4.part"]
    recorder.abandon()
    assert list((tmp_path / "videos").iterdir()) == []


def test_a_recorder_without_av_or_without_a_place_is_refused_in_a_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="needs a logger, or run"):
        VideoRecorder()
    monkeypatch.setattr("runner.extras.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"a video needs av, which is not installed: pip install 'hookline\[video\]'"):
        VideoRecorder(run=tmp_path)
