"""Every hook on disk runs by its YAML, and a run with it that is saved and resumed is the run without a break."""

import pytest

from runner.config.assemble import assemble
from runner.config.check import CONF
from runner.config.summary import explain_schedule
from runner.runs import RunFolder
from runner.spec import ConfigError
from tests.toys import same_tree
from tests.whole.runs import compose, compose_on_policy

SEVERAL = ["learner.modules={left: {}, right: {}}", "collector.frames_per_batch=5", "source.optim_steps=2"]
NEEDED = {
    "clear_cuda_cache": ["hooks.clear_cuda_cache.every.batches=3"],
    "lr_scheduler": ["scheduler=constant", "learning.lr_scheduler.every.updates=10"],
    "target_net_updater": ["target_updater=trivial"],
    "value_estimator": ["learning.value_estimator.estimator={_target_: tests.toys.RewardToGo}"],
    "model_rollouts": [
        "source=dyna",
        "source.capacity=400",
        "source.sources.model.capacity=100",
        "source.optim_steps=1",
        "learning.model_rollouts.updates=3",
        "learning.model_rollouts.starts=20",
    ],
    "kl_stop": ["learning.kl_stop.limit=1e-4"],
    "adaptive_kl": ["loss.kind=kl_penalty"],
    "add_module": ["hooks.add_module.at.env_steps=400", *SEVERAL],
    "remove_module": ["hooks.remove_module.at.env_steps=250", *SEVERAL],
    "early_stopping": ["hooks.early_stopping.monitor=train/return_mean", "hooks.early_stopping.patience=1000"],
}
LEARNING = sorted(path.stem for path in (CONF / "learning").glob("*.yaml"))
HOOKS = sorted(path.stem for path in (CONF / "hooks").glob("*.yaml"))
FIRST = ("select_keys", "value_estimator", "gae", "td_lambda", "v_trace", "returns_to_go")
ON_POLICY = ("on_policy", "kl_stop", "adaptive_kl", *FIRST[1:])


SMALL = ("total_frames=600", "source.warmup=100", "log_every.env_steps=50", "evaluation.every.env_steps=200")


def config_with(group, choice):
    if group == "learning" and choice in ON_POLICY:
        return on_policy_config(choice)
    base = {"learning": "off_policy", "hooks": "default"}[group]
    both = [choice] if choice == base else [choice, base] if choice in FIRST else [base, choice]
    return compose(f"{group}=[{','.join(both)}]", *NEEDED.get(choice, []), *SMALL)


def on_policy_config(choice):
    estimator = choice if choice in FIRST else "gae"
    names = list(dict.fromkeys([estimator, "on_policy", *([] if choice in FIRST else [choice])]))
    small = [word for word in SMALL if "warmup" not in word]
    sizes = ["collector.frames_per_batch=10", "source.batch_size=5"]
    return compose_on_policy(f"learning=[{','.join(names)}]", *sizes, *NEEDED.get(choice, []), *small)


def state_of(experiment):
    """All that must be the same bits: not the clocks, and what tells when a row was written."""
    state = experiment.trainer.state_dict()
    del state["progress"]["seconds"], state["checkpoint"]
    pending = state.pop("metrics")["pending"]
    return {**state, "pending": {name: value for name, value in pending.items() if not name.startswith("perf/")}}


def begun(folder):
    folder.mkdir()
    return RunFolder.start(folder, algo="a", env="e", seed=0, config_hash="")


@pytest.mark.parametrize(
    ("group", "choice"), [*(("learning", one) for one in LEARNING), *(("hooks", one) for one in HOOKS)]
)
def test_a_hook_runs_by_its_yaml_and_resumes_bit_for_bit(group, choice, tmp_path):
    config = config_with(group, choice)
    through = assemble(config, begun(tmp_path / "through"))
    through.trainer.train()

    half = assemble(config, begun(tmp_path / "half"))
    half.trainer.ask_to_stop = lambda: "half" if half.trainer.progress.env_steps >= 310 else None
    half.trainer.train()
    assert half.trainer.progress.env_steps == 310
    resumed = assemble(config, RunFolder.open(tmp_path / "half"))
    resumed.trainer.load_from_file()
    resumed.trainer.train()

    assert resumed.trainer.progress.updates == through.trainer.progress.updates > 40
    assert same_tree(state_of(resumed), state_of(through))


def test_every_hook_that_only_looks_leaves_the_weights_bit_for_bit():
    looking = [one for one in HOOKS if one not in ("add_module", "remove_module")]
    every_one = [*(one for one in looking if one != "default"), "default"]
    typed = [word for one in looking for word in NEEDED.get(one, [])]
    watched = assemble(compose(f"hooks=[{','.join(every_one)}]", *typed, *SMALL))
    alone = assemble({**compose(*SMALL), "hooks": {}})
    for experiment in (watched, alone):
        experiment.trainer.train()
    states = [{name: one.trainer.state_dict()[name] for name in ("learner", "source")} for one in (watched, alone)]
    assert same_tree(*states)
    assert watched.hooks.keys() - alone.hooks.keys() >= {"log_scalar", "log_timing", "early_stopping", "recorder"}


def test_explain_shows_every_hook_with_its_interval():
    config = compose("hooks=[default,log_timing]", "learning=[off_policy,reward_normalizer]")
    shown = explain_schedule(config, assemble(config))
    for words in (
        "ReplayBufferTrainer.extend, RewardNormalizer.update_reward_stats",
        "LogReward, LogExploration (every 1000 env_steps)",
        "Recorder (every 1000 env_steps), LogTiming (every 1000 env_steps)",
        "ReplayBufferTrainer.sample, RewardNormalizer.normalize_reward",
    ):
        assert words in shown


@pytest.mark.parametrize(
    ("choice", "typed"), [("target_net_updater", "target_updater=polyak"), ("lr_scheduler", "scheduler=linear")]
)
def test_what_the_optimization_does_already_has_no_second_owner(choice, typed):
    config = compose(f"learning=[off_policy,{choice}]", typed)
    with pytest.raises(ValueError, match="already"):
        assemble(config)


@pytest.mark.pins("make_target_updater", excludes="its settings cannot be typed")
def test_targets_by_the_names_of_the_page_can_be_typed():
    typed = ("target_updater=interval", "target_updater.value_network_update_interval=50")
    target = assemble(compose(*typed)).trainer.learner.modules["default"].networks["q"].target
    assert (type(target).__name__, target.rate) == ("PolyakTarget", 1 / 50)
    with pytest.raises(ValueError, match="there is no target for a hard_update"):
        assemble(compose(*typed, "target_updater.hard_update=true", "loss.delay_value=false"))


@pytest.mark.pins("make_trainer", excludes="its settings cannot be typed")
def test_what_the_page_sets_by_a_configuration_class_can_be_typed():
    typed = (
        "source.optim_steps=2", "optimizer=adamax", "optimizer.lr=0.01", "optimizer.weight_decay=0.1",
        "scheduler=cosine", "source.batch_size=16", "log_every.env_steps=100", "learner.clip=5",
        "learner.clip_by=value", "learning=[off_policy,reward_normalizer]", "learning.reward_normalizer.scale=2",
        "learning.reward_normalizer.decay=0.5",
    )  # fmt: skip
    experiment = assemble(compose(*typed))
    (own,) = experiment.trainer.learner.optimizations()
    group = own.optimizer.param_groups[0]
    assert (type(own.optimizer).__name__, group["weight_decay"]) == ("Adamax", 0.1)
    assert (own.lr_at(0), type(own.schedule).__name__) == (0.01, "Cosine")
    assert (experiment.source.optim_steps(), experiment.source.batch_size) == (2, 16)
    hook = experiment.hooks["reward_normalizer"]
    assert (hook.scale, hook.decay, str(experiment.trainer.log_every)) == (2, 0.5, "every 100 env_steps")


def refusal(*overrides):
    with pytest.raises(ConfigError) as refused:
        assemble(compose(*overrides))
    return str(refused.value)


def test_hooks_that_cannot_work_in_their_order_or_with_the_source_are_refused_when_built():
    for name in ("reward_normalizer", "batch_sub_sampler"):
        assert f"learning=[off_policy,{name}]" in refusal(f"learning=[{name},off_policy]")
    assert "source.batch_size" in refusal("source=prioritized", "learning=[off_policy,batch_sub_sampler]")
