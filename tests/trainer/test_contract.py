"""What stands at a point is checked when it is registered, and what was registered can be taken out again."""

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from hooks.log_reward import LogReward
from hooks.recorder import Recorder
from runner.hook import Hook, TrainerHookBase
from runner.points import POINTS
from runner.spec import Abandoned, ConfigError, ContractError
from tests.toys import Call, same_tree, trainer


def nothing():
    pass


def one_batch(given):
    return given


def two(losses, sub_batch):
    return None


FITTING = {"data": one_batch, "log": one_batch, "operation": nothing, "optimization": two}


def fits(point, operation, **kwargs):
    try:
        trainer().register_op(point, operation, **kwargs)
    except ContractError:
        return False
    return True


@pytest.mark.pins("Trainer", excludes="the type check of hooks is an empty placeholder")
@pytest.mark.parametrize("point", POINTS)
def test_each_point_takes_operations_of_its_kind_alone(point):
    kind = "log" if point == "post_loss" else POINTS[point]  # one argument
    for other, operation in FITTING.items():
        arguments = {"data": 1, "log": 1, "operation": 0, "optimization": 2}
        assert fits(point, operation) == (arguments[other] == arguments[kind]), (point, other)


@pytest.mark.parametrize(
    ("point", "operation", "words"),
    [
        ("batch_process", nothing, r"nothing at batch_process: what stands there is called with \(batch\); too many"),
        ("optimizer", one_batch, r"one_batch at optimizer: .* \(losses, sub_batch\); too many"),
        ("post_steps", one_batch, "missing a required argument: 'given'"),
        ("post_steps", two, r"two at post_steps: .* called with \(\); missing a required argument: 'losses'"),
    ],
)
def test_the_refusal_names_operation_point_and_what_is_expected(point, operation, words):
    with pytest.raises(ContractError, match=words) as raised:
        trainer().register_op(point, operation)
    assert len(str(raised.value).splitlines()) == 1


class Half:
    def __call__(self, batch) -> None: ...


def returns(annotation):
    def operation(batch): ...

    operation.__annotations__["return"] = annotation
    return operation


@pytest.mark.parametrize(
    ("point", "annotation", "is_fitting"),
    [
        ("batch_process", None, False),
        ("batch_process", "None", False),
        ("batch_process", dict, False),
        ("batch_process", TensorDict | None, False),
        ("batch_process", TensorDict, True),
        ("process_optim_batch", TensorDictBase, True),
        ("pre_steps_log", float, False),
        ("pre_steps_log", torch.Tensor, False),
        ("pre_steps_log", dict[str, float] | None, True),
        ("pre_steps_log", "dict[str, float]", True),
        ("post_loss", float, True),  # nobody looks at it
        ("batch_process", "Unknown", True),
    ],
)
def test_what_an_operation_declares_to_return_has_to_fit(point, annotation, is_fitting):
    assert fits(point, returns(annotation)) == is_fitting


@pytest.mark.pins("TrainerHookBase", excludes="a data hook that returns None is silently ignored")
def test_a_data_hook_that_declares_to_return_nothing_is_refused_at_once():
    with pytest.raises(ContractError, match="returns a TensorDict; it is declared to return None"):
        trainer().register_op("batch_process", Half())


def test_what_an_operation_declares_to_take_has_to_be_a_batch():
    def listing(batch: list): ...

    def exact(batch: TensorDict | list) -> dict: ...

    with pytest.raises(ContractError, match="a TensorDict; its batch is declared as list"):
        trainer().register_op("pre_steps_log", listing)
    assert fits("pre_steps_log", exact)


def test_arguments_given_at_registration_count():
    def wants(batch, at): ...

    assert not fits("pre_steps_log", wants)
    assert fits("pre_steps_log", wants, at=1)
    assert not fits("pre_steps_log", wants, at=1, more=2)


def test_builtins_without_a_signature_pass():
    assert fits("post_steps", dict)


@pytest.mark.pins("Trainer", excludes="operations cannot see the batch")
def test_operations_get_the_trainer_and_the_batch_if_they_declare_them():
    one, seen = trainer(8), []
    one.register_op("pre_optim_steps", lambda batch, trainer: seen.append((trainer is one, batch["next", "reward"])))
    one.register_op("post_optim", lambda trainer: seen.append(trainer.progress.updates))
    one.register_op("post_steps", lambda batch, scale: seen.append((scale * batch["next", "reward"]).tolist()), scale=2)
    one.train()
    assert [seen[0][0], seen[0][1].shape, *seen[1:3]] == [True, (1, 4), 1, [[2, 4, 6, 8]]]


@pytest.mark.parametrize("missing", ["state_dict", "load_state_dict"])
@pytest.mark.pins("TrainerHookBase", excludes="a hook without state_dict fails at the first save")
def test_a_hook_without_state_is_refused_when_it_is_made_in_one_line(missing):
    methods = {"register": nothing, "state_dict": nothing, "load_state_dict": nothing}
    kind = type("Half", (TrainerHookBase,), {name: one for name, one in methods.items() if name != missing})
    with pytest.raises(ConfigError, match=f"Half is no hook yet: it lacks {missing}"):
        kind()


class Count(Hook):
    point = "post_steps"
    remembers = ("calls",)

    def __init__(self, every=None):
        super().__init__(every)
        self.calls = 0

    def __call__(self):
        self.calls += 1


@pytest.mark.pins("TrainerHookBase", excludes="no generic interval")
@pytest.mark.parametrize(
    ("every", "calls"),
    [(None, 5), ({"batches": 1}, 5), ({"batches": 2}, 2), ({"env_steps": 10}, 2), ({"updates": 5}, 1)],
)
def test_every_hook_can_have_an_interval(every, calls):
    one, hook = trainer(20), Count(every)
    hook.register(one)
    one.train()
    assert hook.calls == calls


def test_an_interval_that_is_always_due_costs_nothing():
    one, hook = trainer(20), Count({"batches": 1})
    hook.register(one)
    assert one._operations["post_steps"][0].operation is hook


@pytest.mark.parametrize("before", [{"batches": 1}, {"batches": 2}])
def test_interval_and_memory_go_on_where_they_were_with_another_number_too(before):
    one, hook = trainer(20), Count(before)
    hook.register(one)
    one.train()
    other, resumed = trainer(40), Count({"batches": 4})
    resumed.register(other)
    other.load_state_dict(one.state_dict() | {"count": hook.state_dict()})
    other.train()
    assert resumed.calls == hook.calls + 1  # batch 8, and not 6


def test_a_plain_operation_can_have_an_interval():
    one, seen = trainer(20), []
    one.register_op("pre_steps_log", lambda batch: seen.append(one.progress.batches), every={"env_steps": 8})
    one.register_op("process_optim_batch", lambda batch: batch.set("seen", batch["observation"]), every={"batches": 2})
    one.train()
    assert seen == [2, 4]


def test_the_interval_of_a_plain_operation_is_saved():
    def counting(total_frames):
        one, seen = trainer(total_frames), []
        for _ in range(2):
            one.register_op("post_steps", lambda: seen.append(one.progress.batches), every={"batches": 4})
        return one, seen

    one, _ = counting(20)
    one.train()
    other, seen = counting(40)
    other.load_state_dict(one.state_dict())
    other.train()
    assert (other.progress.batches, seen) == (10, [8, 8])


@pytest.mark.parametrize("every", [None, {"batches": 2}])
def test_what_was_given_up_is_done_when_the_run_goes_on(every):
    one, calls = trainer(12), []

    def give_up_at_first(batch):
        calls.append(one.progress.batches)
        if len(calls) == 1:
            raise Abandoned

    one.register_op("post_steps_log", give_up_at_first, every=every)
    one.train()
    one.train()
    assert calls == ([1, 1, 2, 3] if every is None else [2, 2])


def test_a_hook_without_a_point_or_a_call_is_refused():
    class Nowhere(Hook):
        def __call__(self): ...

    class Silent(Hook):
        point = "post_steps"

    with pytest.raises(ValueError, match="no hook point ''; there are batch_process"):
        Nowhere().register(trainer())
    with pytest.raises(ContractError, match="what stands at post_steps must be callable"):
        Silent().register(trainer())


def test_a_batch_that_is_not_due_is_passed_on():
    one, seen = trainer(16), []
    one.register_op("batch_process", lambda batch: batch[:, :2], every={"batches": 2})
    one.register_op("post_steps_log", lambda batch: seen.append(batch.shape[1]))
    one.train()
    assert seen == [4, 2, 4, 2]


@pytest.mark.pins("Trainer", excludes="hooks cannot be taken out")
def test_what_is_unregistered_is_gone_from_loop_checkpoint_progress_bar_and_schedule():
    one, hook = trainer(8), LogReward()
    hook.register(one)
    shown = Call("pre_steps_log", lambda batch: {"train/mine": 1.0, "log_pbar": True})
    shown.register(one)
    one.train()
    assert set(one.pbar_values) == {"train/return_mean", "train/length_mean", "train/mine"}
    one.unregister(hook)
    assert (set(one.pbar_values), one.schedule()["pre_steps_log"]) == ({"train/mine"}, ["Call"])
    assert "log_reward" not in one.state_dict()
    hook.register(one)


def test_a_hook_may_take_itself_out_while_it_is_called():
    one, calls = trainer(12), []

    class Once(Hook):
        point = "post_steps"

        def __call__(self):
            calls.append("once")
            self.trainer.unregister(self)

    Once().register(one)
    one.register_op("post_steps", lambda: calls.append("other"))
    one.train()
    assert calls == ["once", "other", "other", "other"]


def test_the_schedule_says_how_often():
    class Judge:
        every = {"env_steps": 500}  # noqa: RUF012

    one = trainer()
    Recorder(Judge()).register(one)
    Count({"batches": 1}).register(one)
    assert one.schedule()["post_steps_log"] == ["Recorder (every 500 env_steps)"]
    assert one.schedule()["post_steps"] == ["Count"]


@pytest.mark.pins("TrainerHookBase", excludes="the page's own example cannot be saved and logs every 9 calls")
def test_the_example_of_the_page_works_once_its_arguments_are_in_order():
    with pytest.warns(DeprecationWarning, match="save_dict is now called state_dict"):

        class LoggingHook(TrainerHookBase):
            def __init__(self):
                self.counter = 0

            def register(self, trainer, name):
                trainer.register_module(name, self)
                trainer.register_op("post_optim_log", self)

            def save_dict(self):
                return {"counter": self.counter}

            def load_state_dict(self, state_dict):
                self.counter = state_dict["counter"]

            def __call__(self, batch):
                is_due = self.counter % 10 == 0
                self.counter += 1
                return {"some_value": batch["next", "reward"].sum(), "log_pbar": False} if is_due else None

    def logging(total_frames):
        one, hook, seen = trainer(total_frames), LoggingHook(), []
        hook.register(one, "logging_hook")
        one.metrics.add = lambda values: seen.append(one.progress.updates) if "some_value" in values else None
        return one, hook, seen

    one, _, seen = logging(100)
    one.train()
    assert seen == [1, 11, 21]
    other, hook, seen = logging(200)
    other.load_state_dict(one.state_dict())
    other.train()
    assert (hook.counter, seen) == (50, [31, 41])


@pytest.mark.pins("Trainer", excludes="register_module's arguments swapped on the page")
def test_arguments_in_the_order_of_the_page_get_a_hint():
    with pytest.raises(ContractError, match=r"register_module\(name, module\): the name comes first"):
        trainer().register_module(LogReward(), "log_reward")


@pytest.mark.pins("Trainer", excludes="a loss that returns a copy switches priorities off")
def test_errors_per_sample_reach_the_sub_batch_whatever_the_loss_returns():
    class Copying(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))

        def forward(self, batch):
            error = batch.clone()["observation"] @ self.weight - batch["next", "reward"]
            return {"loss_model": error.square().mean(), "td_error": error.detach().abs()}

    one, seen = trainer(4, Copying()), []
    one.register_op("post_loss", lambda sub_batch: seen.append(sub_batch["td_error"].tolist()))
    one.train()
    assert seen == [[[1, 2, 3, 4]]]


@pytest.mark.pins("Trainer", excludes="two trainers of one class share the throttle of their logs")
def test_trainers_side_by_side_log_as_if_alone():
    def rows(*trainers):
        logged = [[] for _ in trainers]
        for one, found in zip(trainers, logged, strict=True):
            one.metrics.write_row = lambda progress, extra, found=found: found.append(progress.env_steps)
            one.register_op("pre_steps_log", lambda batch: {"train/a": 1.0})
        for one in trainers:
            one.train()
        return logged

    def one():
        return trainer(40, log_every={"env_steps": 8})

    assert same_tree(rows(one(), one()), [*rows(one()), *rows(one())])
