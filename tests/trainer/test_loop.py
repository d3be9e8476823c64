from functools import partial

import pytest
import torch
from tensordict import TensorDict

from runner.builders import make_learner
from runner.checkpoint.store import CheckpointStore
from runner.learner.module import ModuleLoss
from runner.metrics import Metrics
from runner.points import POINTS
from runner.schedules import Linear
from runner.spec import NEXT_REWARD, OBSERVATION
from runner.trainer import BatchSource, Trainer
from tests.toys import Call, Counter, RewardModel, Rows, Tape, collector, environment, same_tree, trainer

COLLECT = ["batch_process", "pre_steps_log"]
UPDATE = ["process_optim_batch", "post_loss", "optimizer", "post_optim", "post_optim_log"]
END = ["post_steps", "post_steps_log"]


def events(optim_steps=1, warmup=0, total_frames=4, **options):
    source = BatchSource(optim_steps)
    source.warmup = warmup
    one, tape = trainer(total_frames, source=source, **options), Tape()
    tape.register(one)
    one.train()
    return tape.events


@pytest.mark.parametrize("optim_steps", [0, 1, 3])
def test_the_points_fire_in_order(optim_steps):
    assert events(optim_steps) == [*COLLECT, "pre_optim_steps", *UPDATE * optim_steps, *END]


@pytest.mark.pins("Trainer")
def test_there_are_ten_points_and_all_of_them_fire():
    assert len(POINTS) == 10
    assert set(events()) == set(POINTS)


def test_before_the_end_of_the_warm_up_nothing_is_updated():
    # Batches of 4 env steps: the warm-up of 8 ends with the second.
    learning = [*COLLECT, "pre_optim_steps", *UPDATE, *END]
    assert events(warmup=8, total_frames=12) == [*COLLECT, *END, *learning, *learning]


def test_without_anything_to_learn_only_collection_is_left():
    one, tape = Trainer(collector=collector(), total_frames=8), Tape()
    tape.register(one)
    one.train()
    assert tape.events == [*COLLECT, *END] * 2


def test_updates_stop_for_the_batch_when_a_hook_says_so():
    one, tape = trainer(8, optim_steps_per_batch=3), Tape()
    tape.register(one)
    Call("post_loss", lambda sub_batch: one.progress.batches > 1 or setattr(one, "optim_stopped", True)).register(one)
    one.train()
    # The first update runs to its end; the next batch gets all of its three.
    first = [*COLLECT, "pre_optim_steps", *UPDATE, *END]
    assert tape.events == [*first, *COLLECT, "pre_optim_steps", *UPDATE * 3, *END]
    assert one.progress.updates == 1 + 3


def test_a_checkpoint_is_written_after_every_hook(tmp_path):
    tape = Tape()

    class Taped(CheckpointStore):
        def save(self, *arguments):
            tape.events.append("save")
            return super().save(*arguments)

        def save_in_background(self, *arguments):
            tape.events.append("save")
            super().save_in_background(*arguments)

    one = trainer(12, checkpoint=Taped(tmp_path, every={"batches": 2}))
    tape.register(one)
    one.train()
    learning = [*COLLECT, "pre_optim_steps", *UPDATE, *END]
    assert tape.events == [*learning, *learning, "save", *learning, "save"]


def test_weights_move_between_post_loss_and_post_optim():
    loss, seen = RewardModel(), {}
    one = trainer(4, loss)
    for point in POINTS:
        one.register_op(point, lambda *batch, at: keep(seen, loss, at, batch), at=point)
    one.train()
    still, moved = seen["batch_process"], seen["post_optim"]
    assert all(torch.equal(seen[point], still) for point in ("pre_optim_steps", "process_optim_batch", "post_loss"))
    assert not torch.equal(moved, still)
    assert all(torch.equal(seen[point], moved) for point in ("post_optim_log", *END))


def keep(seen, loss, point, batch):
    seen[point] = loss.linear.weight.detach().clone()
    return batch[0] if POINTS[point] == "data" else None


def test_data_hooks_pass_their_batch_on_in_the_order_of_registration():
    one, seen = trainer(4), []
    one.register_op("batch_process", lambda batch: batch.set("a", batch[NEXT_REWARD] + 1))
    one.register_op("batch_process", lambda batch: batch.set("b", batch["a"] * 10))
    one.register_op("process_optim_batch", lambda batch: batch[:, :2])
    one.register_op("post_loss", lambda sub_batch: seen.append(sub_batch["b"].tolist()))
    one.register_op("post_steps_log", lambda batch: seen.append(batch["b"].tolist()))
    one.train()
    assert seen == [[[20, 30]], [[20, 30, 40, 50]]]  # rewards 1 2 3 4; logs see the batch, not the sub-batch


class Silent:
    def __call__(self, batch):
        return None


@pytest.mark.parametrize("point", ["batch_process", "process_optim_batch"])
@pytest.mark.parametrize(("hook", "name", "kind"), [(Silent(), "Silent", "NoneType"), (dict, "dict", "dict")])
def test_a_data_hook_that_returns_no_tensordict_is_named(point, hook, name, kind):
    one = trainer(4)
    one.register_op(point, hook if isinstance(hook, Silent) else as_dict)
    with pytest.raises(TypeError, match=f"{name}.* at {point} must return a TensorDict; it returned {kind}"):
        one.train()


def as_dict(batch):
    return dict(batch)


def test_log_pbar_says_what_the_progress_bar_shows_and_is_no_metric():
    rows = Rows()
    one = trainer(4, metrics=Metrics([rows]), log_every={"env_steps": 4})
    one.register_op("pre_steps_log", lambda batch: {"train/a": 1.5, "log_pbar": True})
    one.register_op("post_steps_log", lambda batch: {"train/b": 2.5, "log_pbar": False})
    one.train()
    assert one.pbar_values == {"train/a": 1.5}
    (row,) = rows.rows
    assert (row["train/a"], row["train/b"], "log_pbar" in row) == (1.5, 2.5, False)


@pytest.mark.pins("Trainer", excludes="of the updates between two rows all but the first are dropped")
def test_rows_hold_the_means_since_the_row_before():
    rows, values = Rows(), iter([1.0, 2.0, 6.0, 10.0])
    one = trainer(16, metrics=Metrics([rows]), log_every={"env_steps": 8})
    one.register_op("pre_steps_log", lambda batch: {"train/a": next(values)})
    one.train()
    assert [(row["env_steps"], row["updates"], row["train/a"]) for row in rows.rows] == [(8, 2, 1.5), (16, 4, 8.0)]
    assert all("loss/model" in row and row["lr/default"] == 0.1 for row in rows.rows)


@pytest.mark.pins("Trainer", excludes="frames are counted on the processed batch")
def test_frames_are_counted_on_the_batch_as_it_was_collected():
    one = trainer(8)
    one.register_op("batch_process", lambda batch: batch[:, :1].select(OBSERVATION, NEXT_REWARD))
    one.train()
    assert (one.progress.env_steps, one.progress.batches) == (8, 2)


class Masked:
    """Every batch has one row of two env steps, an episode's end in each, of which the second is padding."""

    def __iter__(self):
        while True:
            fields = {"next": {"done": torch.ones(1, 2, dtype=torch.bool)}}
            yield TensorDict({**fields, "collector": {"mask": torch.tensor([[True, False]])}}, batch_size=[1, 2])

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_masked_rows_do_not_count():
    one = Trainer(collector=Masked(), total_frames=6, frame_skip=2)
    one.train()
    assert (one.progress.env_steps, one.progress.frames, one.progress.episodes) == (3, 6, 3)


def test_total_frames_are_env_steps_times_frame_skip():
    one = trainer(30, collector=collector(environment(Counter, frame_skip=3)), frame_skip=3)
    progress = one.train()
    # 12 frames a batch: the third is the first to reach 30.
    assert (progress.env_steps, progress.frames, progress.batches) == (12, 36, 3)
    assert one.stop_reason == "total_frames"


@pytest.mark.parametrize(
    ("unit", "limit", "expected"), [("env_steps", 10, 12), ("updates", 2, 8), ("episodes", 2, 12), ("seconds", 1e-9, 4)]
)  # batches of 4 env steps with one update; episodes of 5
def test_a_run_stops_after_each_unit(unit, limit, expected):
    one = trainer(1_000, stop_after={unit: limit})
    assert (one.train().env_steps, one.stop_reason) == (expected, f"stop_after.{unit}")


def test_a_hook_can_ask_to_stop_at_the_end_of_the_batch():
    one, tape = trainer(1_000), Tape()
    Call("pre_steps_log", lambda batch: one.request_stop("enough")).register(one)
    tape.register(one)
    one.train()
    assert tape.events == [*COLLECT, "pre_optim_steps", *UPDATE, *END]
    assert one.stop_reason == "enough"


@pytest.mark.pins("Trainer", excludes="nothing is saved where the collector ends first")
def test_a_run_whose_collector_ends_says_so_and_is_saved(tmp_path):
    playing = collector()
    playing.total_frames = 8
    one = trainer(1_000, collector=playing, save_trainer_file=tmp_path)
    assert (one.train().env_steps, one.stop_reason) == (8, "the collector has ended")
    other = trainer(1_000, save_trainer_file=tmp_path)
    other.load_from_file()
    assert other.progress.env_steps == 8


def test_a_request_from_outside_stops_at_the_end_of_the_batch():
    one = trainer(1_000)
    one.ask_to_stop = lambda: "SIGTERM" if one.progress.batches >= 2 else None
    assert (one.train().batches, one.stop_reason) == (2, "SIGTERM")


def test_a_run_that_is_over_does_not_begin_again():
    one = trainer(8)
    one.train()
    assert one.train().env_steps == 8


def test_a_run_goes_on_when_its_limit_is_raised():
    one, through = trainer(8), trainer(16)
    one.train()
    one.total_frames = 16
    assert one.train().env_steps == 16
    through.train()
    assert same_tree(one.learner.state_dict(), through.learner.state_dict())


def test_progress_counts_everything():
    one = trainer(12, optim_steps_per_batch=2, collector=collector(environment(Counter, 2)))
    progress = one.train()
    # 6 steps of each of 2 environments, whose episodes have 5.
    assert (progress.env_steps, progress.updates, progress.episodes, progress.batches) == (12, 6, 2, 3)
    assert progress.seconds > 0


def test_parts_made_without_counters_follow_those_of_the_trainer():
    env = environment(lambda: Counter(100))
    model = RewardModel()
    learner = make_learner(
        {"loss_module": model}, ModuleLoss(), partial(torch.optim.SGD, lr=1.0), Linear(8, 0.0, None), update_every=2
    )
    one = Trainer(collector=collector(env), learner=learner, total_frames=12)
    one.register_op("optimizer", learner.step)
    weights = []
    one.register_op("post_optim", lambda: weights.append(model.linear.bias.item()))
    one.train()
    # Updates 0 and 2 are its own, at env steps 4 and 12; by env step 8 the learning rate has fallen to 0.
    assert weights[0] == weights[1] == weights[2] != 0
    assert learner.modules["default"].optimizations[0].lr == 0
    assert one.progress is learner.progress is one.collector.progress


def test_two_trainers_share_nothing():
    one, other = trainer(8), trainer(8)
    alone = trainer(8)
    one.register_op("pre_steps_log", lambda batch: {"a": 1.0, "log_pbar": True})
    one.train()
    assert (other.progress.env_steps, other.schedule()["pre_steps_log"], other.pbar_values) == (0, [], {})
    other.train()
    alone.train()
    assert same_tree(other.learner.state_dict(), alone.learner.state_dict())
    assert other.metrics.latest.keys() == alone.metrics.latest.keys()


def test_the_steady_rate_begins_with_learning(monkeypatch):
    one = trainer(8)
    assert one.steady_rate() is None
    one.progress.updates, one.progress.env_steps, one.progress.seconds = 1, 100, 2.0
    monkeypatch.setattr("runner.trainer.time.monotonic", lambda: one._clock)
    one._safe_point()
    one.progress.env_steps, one.progress.seconds = 400, 5.0
    assert one.steady_rate() == 100.0  # 300 env steps in 3 seconds
