import gymnasium
import numpy as np
import pytest

from runner.config.assemble import assemble
from runner.config.experiment import NotStarted, _assemble
from runner.config.summary import _ways_to_look
from runner.runs import RunFolder
from runner.seeding import env_seed
from runner.spec import Abandoned
from runner.video import read_video
from tests.toys import Counter, same_tree
from tests.whole.runs import compose

SMALL = (
    "total_frames=600", "source.warmup=100", "log_every.env_steps=100", "hooks=[default,record_video]",
    "hooks.record_video.every={env_steps: 200}", "hooks.record_video.recorder.max_frames=30",
)  # fmt: skip


def begun(folder):
    folder.mkdir()
    return RunFolder.start(folder, algo="a", env="e", seed=0, config_hash="")


def recorded(tmp_path, *overrides):
    experiment = assemble(compose(*SMALL, *overrides), begun(tmp_path / "run"))
    experiment.trainer.train()
    return experiment, tmp_path / "run/videos"


class Drawn(Counter):
    """Shows how many steps its episode has, and its seed; ends after ``length``."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    made: list = []  # noqa: RUF012

    def __init__(self, length: int = 5, render_mode: str | None = None):
        super().__init__(length)
        self.render_mode = render_mode
        Drawn.made.append(self)

    def render(self):
        return np.full((32, 32, 3), 10 * self.steps, np.uint8) if self.render_mode else None


DRAWN = ("env=gym", "env.make={_target_: tests.hooks.test_record_video.Drawn, length: 8}", "tuned=null")


def test_a_run_has_a_video_each_so_often_that_shows_its_whole_episode(tmp_path):
    experiment, folder = recorded(tmp_path)
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == ["greedy-200.mp4", "greedy-400.mp4", "greedy-600.mp4"]
    pictures = list(read_video(paths[-1]))
    assert pictures[0].shape == (400, 600, 3)
    assert (pictures[0] != pictures[-1]).any()
    assert 1 < len(pictures) <= 30
    (line,) = [line for line in _ways_to_look(experiment) if "videos" in line]
    assert line.endswith("greedy-600.mp4  (the newest of 3 videos)")


def test_a_video_shows_every_step_of_a_seed_of_its_own(tmp_path):
    Drawn.made.clear()
    experiment, folder = recorded(tmp_path, *DRAWN)
    (env,) = [one for one in Drawn.made if one.render_mode]
    assert env.seeds == [0, *(env_seed(0, "record_video", video, 0) for video in range(3))]  # the first is the trial
    shown = [int(picture.mean()) for picture in read_video(folder / "greedy-400.mp4")]
    assert shown == pytest.approx([10 * step for step in range(9)], abs=3)
    assert experiment.hooks["record_video"].recorder.fps == 20


def test_several_episodes_are_side_by_side_until_the_last_has_ended(tmp_path):
    _, folder = recorded(tmp_path, *DRAWN, "hooks.record_video.episodes=3")
    pictures = list(read_video(folder / "greedy-200.mp4"))
    assert (len(pictures), pictures[0].shape) == (9, (64, 64, 3))
    corners = [int(pictures[-1][y, x, 0]) for y in (16, 48) for x in (16, 48)]
    assert corners == pytest.approx([80, 80, 80, 0], abs=3)


def test_recording_leaves_training_bit_for_bit(tmp_path):
    with_videos, _ = recorded(tmp_path)
    without = assemble({**compose(*SMALL), "hooks": {}})
    without.trainer.train()
    states = [
        {name: one.trainer.state_dict()[name] for name in ("learner", "source", "collector", "streams")}
        for one in (with_videos, without)
    ]
    assert same_tree(*states)


def test_a_run_that_goes_on_records_on_and_removes_what_was_half_written(tmp_path):
    config = compose(*SMALL)
    half = assemble(config, begun(tmp_path / "run"))
    half.trainer.ask_to_stop = lambda: "half" if half.trainer.progress.env_steps >= 310 else None
    half.trainer.train()
    (tmp_path / "run/videos/.greedy-unnamed.mp4.part").write_bytes(b"half")
    resumed = assemble(config, RunFolder.open(tmp_path / "run"))
    resumed.trainer.load_from_file()
    resumed.trainer.train()
    assert resumed.hooks["record_video"].count == 3
    names = sorted(path.name for path in (tmp_path / "run/videos").iterdir())
    assert names == ["greedy-200.mp4", "greedy-400.mp4", "greedy-600.mp4"]


def test_a_signal_gives_a_video_up_and_the_resumed_run_records_it(tmp_path):
    config = compose(*SMALL)
    experiment = assemble(config, begun(tmp_path / "run"))
    hook = experiment.hooks["record_video"]
    experiment.evaluation.should_stop = lambda: experiment.trainer.progress.env_steps >= 400
    experiment.trainer.ask_to_stop = lambda: "signal" if experiment.evaluation.should_stop() else None
    experiment.evaluation.run = lambda: pytest.fail("not due")
    experiment.trainer.train()
    assert hook.count == 1
    assert [path.name for path in (tmp_path / "run/videos").iterdir()] == ["greedy-200.mp4"]
    resumed = assemble(config, RunFolder.open(tmp_path / "run"))
    resumed.trainer.load_from_file()
    resumed.trainer.train()
    assert len(list((tmp_path / "run/videos").iterdir())) == 3


def test_giving_up_is_the_trainers_business(tmp_path):
    experiment = assemble(compose(*SMALL), begun(tmp_path / "run"))
    experiment.evaluation.should_stop = lambda: True
    with pytest.raises(Abandoned):
        experiment.hooks["record_video"](None)


def test_an_episode_that_fails_costs_a_video_and_no_training(tmp_path, caplog):
    experiment = assemble(compose(*SMALL), begun(tmp_path / "run"))
    hook = experiment.hooks["record_video"]

    def fail():
        raise RuntimeError("the screen is gone")

    hook._envs[0].env.render = fail
    experiment.trainer.train()
    assert experiment.trainer.progress.env_steps == 600
    warned = [record.getMessage() for record in caplog.records if "no video" in record.getMessage()]
    assert warned[0] == "no video at env step 200; training goes on: the screen is gone"
    assert not list((tmp_path / "run/videos").glob("*"))


class Unseen(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, True, False, {}


def test_an_environment_that_cannot_be_drawn_is_refused_in_a_line_before_anything_is_trained():
    config = compose(*SMALL, "env=gym", "env.make={_target_: tests.hooks.test_record_video.Unseen}", "tuned=null")
    with pytest.raises(NotStarted, match=r"hooks\.record_video: .*") as refused:
        _assemble(config)
    assert "\n" not in str(refused.value)
