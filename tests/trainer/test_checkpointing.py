import os
import resource
from contextlib import contextmanager
from itertools import count

import pytest
import torch
from torch import nn

from hooks.log_reward import LogReward
from hooks.select_keys import SelectKeys
from runner.checkpoint.store import CheckpointStore
from runner.learner.optimization import NonFiniteError
from runner.metrics import Metrics
from runner.spec import CheckpointError, EnvFault
from runner.trainer import Trainer
from tests.toys import Call, RewardModel, Rows, Tape, collector, environment, same_tree, trainer

BACKENDS = ["torchsnapshot", "torch"]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    monkeypatch.setenv("CKPT_BACKEND", request.param)
    return request.param


def reference(path, total_frames=400):
    """The constructor of the reference page, with a hook that has state."""
    loss, playing = RewardModel(4), collector(environment("CartPole-v1", 2), 20, epsilon=0.3)
    one = Trainer(
        collector=playing,
        total_frames=total_frames,
        frame_skip=1,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=0.01),
        save_trainer_file=path,
    )
    LogReward(5).register(one)
    return one


def without_clocks(one):
    state = one.state_dict()
    state["progress"].pop("seconds")
    state["metrics"] = {key: value for key, value in state["metrics"].items() if key == "pending"}
    return state


@pytest.mark.pins("Trainer", excludes="the page's own example lacks an argument")
@pytest.mark.pins("SelectKeys")
def test_the_checkpoint_example_of_the_page_runs(backend, tmp_path):
    def made():
        one = reference(tmp_path / "dir", 40)
        SelectKeys(["action", "observation", ("next", "reward")]).register(one)
        one.unregister(one._modules["log_reward"])  # which would miss the returns that are dropped
        return one

    one = made()
    one.train()
    one.save_trainer(True)
    other = made()
    other.load_from_file(tmp_path / "dir")
    assert same_tree(without_clocks(other), without_clocks(one))
    assert "select_keys" in other.state_dict()


@pytest.mark.pins("Trainer", excludes="optimizer moments are not saved")
def test_a_loaded_trainer_goes_on_bit_for_bit(backend, tmp_path):
    path = tmp_path / "trainer.pt"
    through, one = reference(tmp_path / "through"), reference(path, 200)
    through.train()
    one.train()
    one.save_trainer(True)
    other = reference(path)
    assert other.load_from_file(path) is other
    assert other.progress.env_steps == 200
    other.train()
    assert same_tree(without_clocks(other), without_clocks(through))


def test_each_backend_reads_what_the_other_wrote(backend, tmp_path, monkeypatch):
    one = reference(tmp_path, 40)
    one.train()
    monkeypatch.setenv("CKPT_BACKEND", next(name for name in BACKENDS if name != backend))
    other = reference(tmp_path)
    other.load_from_file()
    assert same_tree(other.state_dict()["learner"], one.state_dict()["learner"])


def test_an_unknown_backend_is_refused_at_construction(tmp_path, monkeypatch):
    monkeypatch.setenv("CKPT_BACKEND", "pickle")
    with pytest.raises(CheckpointError, match="choose torchsnapshot or torch"):
        reference(tmp_path)


def test_a_trainer_can_be_used_for_checkpoints_alone(backend, tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    one = Trainer(save_trainer_file=tmp_path / "a.pt")
    one.register_module("model", model)
    one.save_trainer(True)
    two = Trainer()
    two.register_module("model", other)
    two.load_from_file(tmp_path / "a.pt")
    assert same_tree(dict(model.state_dict()), dict(other.state_dict()))


def test_the_end_of_a_run_is_saved(tmp_path):
    reference(tmp_path, 60).train()
    assert [folder.name for folder in CheckpointStore(tmp_path).folders()] == ["step-60"]


def test_checkpoints_are_due_by_their_interval_and_the_last_two_stay(tmp_path):
    one = trainer(20, checkpoint=CheckpointStore(tmp_path, every={"env_steps": 8}))
    saved = []
    one.checkpoint.save = note("awaited", one.checkpoint.save, saved)
    one.checkpoint.save_in_background = note("in background", one.checkpoint.save_in_background, saved)
    one.train()
    # Batches of 4: multiples of 8 are crossed at 8 and 16, and the run ends at 20.
    assert saved == [("in background", 8), ("in background", 16), ("awaited", 20)]
    assert [folder.name for folder in one.checkpoint.folders()] == ["step-20", "step-16"]


def note(how, save, saved):
    def and_note(state, counters, extra):
        saved.append((how, counters["env_steps"]))
        return save(state, counters, extra)

    return and_note


@contextmanager
def full_disk():
    """Files of more than 100 bytes cannot be written, until what is given is called."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_run_that_cannot_save_goes_on_and_saves_when_it_can(tmp_path, caplog):
    one = trainer(20, checkpoint=CheckpointStore(tmp_path, every={"env_steps": 8}))

    def make_room(batch):
        if one.progress.env_steps == 12:
            one.checkpoint.finish()
            free()

    Call("post_steps_log", make_room).register(one, "make_room")
    with full_disk() as free:
        one.train()
    assert [folder.name for folder in one.checkpoint.folders()] == ["step-20", "step-16"]
    (warning,) = [record.getMessage() for record in caplog.records if "no checkpoint" in record.getMessage()]
    assert "the run goes on" in warning


def test_a_run_whose_last_save_fails_says_so(tmp_path):
    one = trainer(20, checkpoint=CheckpointStore(tmp_path))
    with full_disk(), pytest.raises(CheckpointError, match="no checkpoint could be written") as caught:
        one.train()
    assert "\n" not in str(caught.value)
    assert os.listdir(one.checkpoint.folder) == []


def test_saving_is_only_done_when_due_or_forced(tmp_path):
    one = Trainer(save_trainer_file=tmp_path)
    assert one.save_trainer() is None
    assert not (tmp_path / "ckpt").exists()
    assert one.save_trainer(force_save=True).name == "step-0"


def test_without_a_place_saving_does_nothing_and_loading_says_so():
    one = Trainer()
    assert one.save_trainer(True) is None
    with pytest.raises(CheckpointError, match="save_trainer_file"):
        one.load_from_file()


def test_a_place_without_checkpoints_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="there is none"):
        Trainer().load_from_file(tmp_path)


def test_the_manifest_has_the_counters_and_the_mode_of_the_environments(tmp_path):
    one = reference(tmp_path, 40)
    one.train()
    _, manifest = one.checkpoint.load()
    assert manifest["extra"]["env_mode"] == "tape"
    assert {name: manifest["counters"][name] for name in ("env_steps", "frames", "updates", "batches")} == {
        "env_steps": 40,
        "frames": 40,
        "updates": 2,
        "batches": 2,
    }


def test_everything_with_state_is_in_the_checkpoint(tmp_path):
    assert set(reference(tmp_path).state_dict()) == {
        "progress",
        "collector",
        "learner",
        "source",
        "metrics",
        "log_every",
        "checkpoint",
        "stop",
        "unfinished",
        "log_reward",
    }


def test_a_hook_added_since_starts_afresh_with_a_warning(tmp_path, caplog):
    reference(tmp_path, 20).train()
    other = reference(tmp_path)
    Tape().register(other, "newcomer")
    other.load_from_file()
    assert "no state for newcomer" in caplog.text
    assert other.progress.env_steps == 20


def test_a_hook_taken_out_since_does_no_harm(tmp_path):
    reference(tmp_path, 20).train()
    other = reference(tmp_path)
    other.unregister(next(operation for operation in other.operations("pre_steps_log")))
    other.load_from_file()
    assert other.progress.env_steps == 20


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    loss = RewardModel()
    one = trainer(8, loss, save_trainer_file=tmp_path)
    nn.init.constant_(loss.linear.weight, float("nan"))
    with pytest.raises(NonFiniteError):
        one.train()
    assert not CheckpointStore(tmp_path).folders()


def test_a_fault_of_an_environment_is_what_is_said_though_the_weights_cannot_be_saved(tmp_path):
    loss = RewardModel()
    one = trainer(8, loss, save_trainer_file=tmp_path)

    def fail(batch):
        nn.init.constant_(loss.linear.weight, float("nan"))
        raise EnvFault("evaluation env 0, episode 3, step 5: step raised ValueError")

    Call("post_steps_log", fail).register(one)
    with pytest.raises(EnvFault, match=r"^evaluation env 0, .* raised ValueError; not saved: .* no longer finite"):
        one.train()


def test_metric_rows_go_on_where_they_were(tmp_path):
    def measured(total_frames):
        values = count(1.0)
        one = trainer(total_frames, metrics=Metrics([Rows()]), log_every={"env_steps": 12}, save_trainer_file=tmp_path)
        one.register_op("pre_steps_log", lambda batch: {"train/a": next(values)})
        return one, values

    through, _ = measured(24)
    through.train()
    one, _ = measured(8)
    one.train()
    other, values = measured(24)
    other.load_from_file()
    assert (next(values), next(values)) == (1.0, 2.0)  # used up before the break
    other.train()
    rows = [
        [
            {name: value for name, value in row.items() if not name.startswith("perf/")}
            for row in part.metrics.loggers[0].rows
        ]
        for part in (through, other)
    ]
    assert rows[0] == rows[1]
    assert [row["train/a"] for row in rows[0]] == [2.0, 5.0]  # means of 1 2 3 and of 4 5 6


def test_a_run_asked_to_stop_and_killed_before_it_ended_stays_stopped(tmp_path):
    one = reference(tmp_path, 60)
    Call("post_steps_log", lambda batch: one.request_stop("good enough")).register(one, "stopper")
    assert one.train().env_steps == 20  # one batch
    other = reference(tmp_path, 60)
    other.load_from_file()
    assert (other.train().env_steps, other.stop_reason) == (20, "good enough")
    other.forget_stop()
    assert other.train().env_steps == 60


@pytest.mark.parametrize("part", ["progress", "collector", "learner", "source"])
def test_half_a_checkpoint_is_not_loaded(tmp_path, part):
    one = reference(tmp_path, 8)
    state = one.state_dict()
    del state[part]
    with pytest.raises(CheckpointError, match=f"no state for {part}"):
        one.load_state_dict(state)


@pytest.mark.pins("Trainer", excludes="saves come one interval late, as it has to be passed and not reached")
@pytest.mark.parametrize("interval", [8, 12])
def test_a_path_is_saved_to_each_so_many_frames(backend, tmp_path, interval):
    one = trainer(20, save_trainer_file=tmp_path, save_trainer_interval=interval)
    saved = []
    one.checkpoint.save_in_background = note("in background", one.checkpoint.save_in_background, saved)
    one.train()
    # Batches of 4 env steps, of one frame each.
    assert [frames for _, frames in saved] == [frames for frames in (4, 8, 12, 16) if frames % interval == 0]
    manifest = one.checkpoint.load()[1]
    assert (manifest["backend"], manifest["counters"]["frames"]) == (backend, 20)


def test_frames_and_not_env_steps_are_counted_for_the_interval_of_a_path(tmp_path):
    one = trainer(20, frame_skip=2, save_trainer_file=tmp_path, save_trainer_interval=8)
    saved = []
    one.checkpoint.save_in_background = note("in background", one.checkpoint.save_in_background, saved)
    one.train()
    assert [env_steps for _, env_steps in saved] == [4, 8]


def test_an_interval_of_no_frames_and_two_places_to_save_to_are_refused(tmp_path):
    with pytest.raises(ValueError, match="save_trainer_interval=0 must be > 0"):
        trainer(8, save_trainer_file=tmp_path, save_trainer_interval=0)
    with pytest.raises(ValueError, match="checkpoint and save_trainer_file"):
        trainer(8, save_trainer_file=tmp_path, checkpoint=CheckpointStore(tmp_path))
