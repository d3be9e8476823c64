"""Every mistake is answered by one line that says where it is and what to type; nothing is started or written."""

import os
import resource
import subprocess
import sys

import pytest

from runner.config.arguments import parse_arguments
from runner.config.check import check
from runner.config.relations import wrong_address
from tests.config.conftest import ROOT

LINE = "command line"
MISTAKES = {
    "typo in a key": ("optimizer.lrr=1e-3", f"optimizer.lrr ({LINE})", "did you mean optimizer.lr?"),
    "typo in a node": ("optimzer.lr=1e-3", f"optimzer.lr ({LINE})", "did you mean optimizer.lr?"),
    "typo in a root key": ("sede=1", f"sede ({LINE})", "did you mean seed?"),
    "key without its node": ("lr=1e-3", f"lr ({LINE})", "did you mean optimizer.lr?"),
    "typo in a group": ("enviro=cartpole", f"enviro ({LINE})", "did you mean env?"),
    "typo in a choice": ("env=cartpol", f"env=cartpol ({LINE})", "did you mean cartpole?"),
    "choice in capitals": ("algo=DQN", f"algo=DQN ({LINE})", "did you mean dqn?"),
    "id for a group": ("env=Pong-v5", f"env=Pong-v5 ({LINE})", "env=gym env.id=Pong-v5"),
    "word for nothing": ("logger=none", f"logger=none ({LINE})", "logger=null leaves it out"),
    "choice of a plugin": ("hydra/launcher=joblib", "hydra/launcher=joblib", "pip install 'hookline[joblib]'"),
    "choice that is named twice": (
        "hooks=[default,default]",
        f"hooks=[default,default] ({LINE})",
        "names default twice",
    ),
    "choice that leaves something open": ("env=gyn", f"env=gyn ({LINE})", "did you mean gym?"),
    "another library's word": ("learning_rate=1", f"learning_rate ({LINE})", "did you mean optimizer.lr?"),
    "word that is like nothing": ("qqqqqqq=1", f"qqqqqqq ({LINE})", "python run.py --help lists the keys"),
    "key of a node that takes none": (
        "hooks.recorder.x=1",
        f"hooks.recorder.x ({LINE})",
        "hooks.recorder takes nothing",
    ),
    "two letters": ("optimizer.or=1", f"optimizer.or ({LINE})", "did you mean optimizer.lr?"),
    "hook that is not chosen": (
        "hooks.early_stopping.patience=3",
        f"hooks.early_stopping.patience ({LINE})",
        "hooks=[default,early_stopping] has it",
    ),
    "nonsense of a hook that is not chosen": (
        "hooks.early_stopping.x=1",
        f"hooks.early_stopping.x ({LINE})",
        "hooks.early_stopping comes with hooks=[default,early_stopping]",
    ),
    "typo in a hook that is not chosen": (
        "hooks.early_stoping.patience=3",
        f"hooks.early_stoping.patience ({LINE})",
        "did you mean hooks.early_stopping.patience? hooks=[default,early_stopping] has it",
    ),
    "key of another choice": ("optimizer.momentum=0.9", f"optimizer.momentum ({LINE})", "optimizer=sgd has it"),
    "unknown algorithm": ("algo=dqnn", f"algo=dqnn ({LINE})", "did you mean dqn?"),
    "typo in one of several choices": (
        "hooks=[default,early_stoping]",
        f"hooks=early_stoping ({LINE})",
        "did you mean early_stopping?",
    ),
    "typo in an experiment": ("experiment=cleanrl_dqn", f"experiment=cleanrl_dqn ({LINE})", "cleanrl_dqn_cartpole?"),
    "typo in tuned": ("tuned=dqn/cartpol", f"tuned=dqn/cartpol ({LINE})", "did you mean dqn/cartpole?"),
    "tuned for another algorithm": ("tuned=pppo/acrobot", f"tuned=pppo/acrobot ({LINE})", "did you mean ppo/acrobot?"),
    "choice that lacks what others refer to": ("loss=bcc", f"loss=bcc ({LINE})", "did you mean bc?"),
    "typo in a hook": ("~hooks.log_rewards", f"~hooks.log_rewards ({LINE})", "did you mean hooks.log_reward?"),
    "typo in a hook's key": (
        "hooks.log_reward.windw=5",
        "hooks.log_reward.windw",
        "did you mean hooks.log_reward.window?",
    ),
    "number expected": ("optimizer.lr=abc", f'optimizer.lr = "abc" ({LINE})', "expected a number > 0"),
    "whole number expected": ("source.batch_size=2.5", f"source.batch_size = 2.5 ({LINE})", "a whole number > 0"),
    "list expected": ("network.hidden=64", f"network.hidden = 64 ({LINE})", "expected a list"),
    "mapping for a list": ("network.hidden={a:1}", f"network.hidden={{a:1}} ({LINE})", "expected a list"),
    "new root key": ("+qqqqqq=1", f"qqqqqq ({LINE})", "python run.py --help lists the keys"),
    "wrong item in a list": ("network.hidden=[64,a]", 'network.hidden = [64, "a"]', "each item a whole number > 0"),
    "boolean expected": ("loss.double=2", f"loss.double = 2 ({LINE})", "expected true or false"),
    "wrong number of items": ("optimizer.betas=[0.9]", f"optimizer.betas = [0.9] ({LINE})", "a list of 2"),
    "unknown word": ("loss.loss_function=l1", f'loss.loss_function = "l1" ({LINE})', "expected one of"),
    "typo in a word": ("network.activation=rel", 'network.activation = "rel"', "did you mean relu?"),
    "number where a unit belongs": (
        "checkpoint.every=9",
        "checkpoint.every = 9",
        "example checkpoint.every.env_steps=9",
    ),
    "bad number of a unit": ("stop_after.updates=0", f"stop_after.updates = 0 ({LINE})", "expected a number > 0"),
    "infinity": ("optimizer.lr=inf", f"optimizer.lr = Infinity ({LINE})", "expected a number > 0"),
    "not a number": ("scheduler.end=nan", f"scheduler.end = NaN ({LINE})", "expected a number >= 0"),
    "below the range": ("seed=-1", f"seed = -1 ({LINE})", "expected a whole number >= 0"),
    "above the range": ("loss.gamma=1.5", f"loss.gamma = 1.5 ({LINE})", "expected a number from 0 to 1"),
    "zero where there must be some": ("total_frames=0", f"total_frames = 0 ({LINE})", "a whole number > 0"),
    "null where a value is needed": ("device=null", f"device = null ({LINE})", "expected cpu, cuda or cuda:<number>"),
    "no such device": ("device=gpu", f'device = "gpu" ({LINE})', "expected cpu, cuda or cuda:<number>"),
    "missing in the file": ("scheduler=piecewise", "scheduler.points (conf/scheduler/piecewise.yaml:", "missing"),
    "missing after a removal": ("~seed", "seed (", "missing: expected a whole number >= 0"),
    "environment without a name": ("env=gym", "env.id (conf/env/gym.yaml:", "missing: expected the id"),
    "unknown environment": ("env.id=CartPol-v1", f'env.id = "CartPol-v1" ({LINE})', "did you mean CartPole-v1?"),
    "a needed group left out": (
        "~env",
        f"~env ({LINE})",
        "a run cannot do without env; choices: acrobot, atari",
    ),
    "no value": ("seed", f"seed ({LINE})", "write seed=<value>"),
    "open bracket": ("network.hidden=[64", f"network.hidden=[64 ({LINE})", "lacks a ]"),
    "round brackets": ("network.hidden=(64,64)", f"network.hidden=(64,64) ({LINE})", "a list is [64,64]"),
    "bad syntax": ("seed=1]x[", f"seed=1]x[ ({LINE})", "cannot be read as key=value"),
    "spaces around the equals sign": ("seed = 1", f"seed = 1 ({LINE})", "write key=value without spaces"),
    "two pluses before a group": ("++optimizer=adam", f"++optimizer=adam ({LINE})", "a group takes + or nothing"),
    "nothing but a value": ("=3", f"=3 ({LINE})", "nothing stands before the ="),
    "nothing at all": (" ", f"' ' ({LINE})", "expected key=value"),
    "no group before the @": ("@env=gym", f"@env=gym ({LINE})", "nothing stands before the ="),
    "no package after the @": ("env@=gym", f"env@=gym ({LINE})", "nothing stands after the @"),
    "look-alike letter in a key": ("s\u0435ed=3", f"({LINE}): has CYRILLIC SMALL LETTER IE (\\u0435)", "mean seed?"),
    "look-alike letter in a choice": ("env=cartp\u043ele", f"({LINE}): has CYRILLIC", "mean env=cartpole?"),
    "minus sign of a word processor": ("seed=\u22121", f"({LINE}): has MINUS SIGN", "values have only in quotes"),
    "dashes": ("--seed=3", f"--seed=3 ({LINE})", "settings are written without dashes: seed="),
    "interpolation of nothing": (
        "source.gamma=${loss.gama}",
        f"source.gamma ({LINE})",
        "'loss.gama' not found; did you mean loss.gamma?",
    ),
    "interpolation of nothing of Hydra's": ("seed=${hydra:no.such}", f"seed ({LINE})", "Hydra has no setting no.such"),
    "interpolation of itself": ("loss.gamma=${source.gamma}", "source.gamma", "leads back to itself"),
    "unknown unit": ("log_every.epsiodes=5", f"log_every.epsiodes ({LINE})", "did you mean log_every.episodes?"),
    "unit that cannot stop a run": ("stop_after.batches=5", f"stop_after.batches ({LINE})", "takes env_steps, updates"),
    "two units": ("log_every={updates:2,episodes:3}", 'log_every = {"updates": 2', "expected one unit ("),
    "zero of a unit": ("log_every.updates=0", 'log_every = {"updates": 0}', "and a number > 0"),
    "unlisted key without a plus": ("env.kwargs.g=9.8", f"env.kwargs.g ({LINE})", "add it with +env.kwargs.g=9.8"),
    "a plus too many": (
        "+optimizer.eps=1e-3",
        "is already set (conf/optimizer/adam.yaml:4)",
        "leave out the +: optimizer.eps",
    ),
    "added parameter that is none": ("+optimizer.lrr=1", f"optimizer.lrr ({LINE})", "did you mean optimizer.lr?"),
    "key below a value": ("optimizer.lr.x=1", f"optimizer.lr.x ({LINE})", "optimizer.lr is a value"),
    "parameter of the builder": ("+optimizer.params=1", f"optimizer.params ({LINE})", "filled in by the builder"),
    "target that is not there": ("loss._target_=runner.builders.make_dqm_loss", "loss._target_", "make_dqn_loss?"),
    "target without a module": ("loss._target_=nowhere.Loss", f"loss._target_ ({LINE})", "cannot be found"),
    "target left open": ("loss._target_='???'", "loss._target_", "missing: expected the dotted name"),
    "module of an environment that is not there": ("env.id=nowhere:My-v0", "env.id = ", "there is no module nowhere"),
    "removal of another value": ("~seed=5", f"~seed=5 ({LINE})", "it is 0, not 5; write ~seed"),
    "value where a node belongs": ("env.make=3", f"env.make = 3 ({LINE})", "expected a node with a _target_ or null"),
    "node where a value belongs": ("seed={_target_: os.getcwd}", "seed = {", "expected a whole number"),
    "hook that is no node": ("hooks.recorder=5", f"hooks.recorder ({LINE})", "expected a node with a _target_"),
    "typo in a setting of Hydra": ("hydra.run.dri=x", f"hydra.run.dri ({LINE})", "did you mean hydra.run.dir?"),
    "empty folder": ("hydra.run.dir=", f"hydra.run.dir= ({LINE})", "expected a folder"),
    "folder that leads nowhere": ("hydra.run.dir=${x}/y", f"hydra.run.dir ({LINE})", "'x' not found"),
    "folder for the configuration": ("hydra.output_subdir=null", "hydra.output_subdir=null", "its folder .hydra"),
    "search path": ("hydra.searchpath=[x]", f"hydra.searchpath=[x] ({LINE})", "--config-dir adds a folder"),
    "part of Hydra taken out": ("~hydra.run.dir", f"~hydra.run.dir ({LINE})", "Hydra cannot set this"),
    "no launcher": ("hydra.launcher=null", f"hydra.launcher ({LINE})", "expected a node with a _target_"),
    "launcher that is not there": ("hydra.launcher._target_=no.Thing", "hydra.launcher._target_", "cannot be found"),
    "variable that is not set": ("hydra.job.env_copy=[NO_SUCH]", "hydra.job.env_copy", "has no variable NO_SUCH"),
    "unknown launcher": ("hydra/launcher=basik", f"hydra/launcher=basik ({LINE})", "did you mean basic?"),
    "sweep without -m": ("seed=0,1", f"seed=0,1 ({LINE})", "several values need -m"),
    "folder that is not there": ("--config-dir=none", f"--config-dir ({LINE})", "there is no folder none"),
    "package that is not there": ("trust=[no_such_pkg]", f"trust = no_such_pkg ({LINE})", "no such package"),
    "folder without a name": ("--config-dir=", f"--config-dir= ({LINE})", "expected a folder of configs"),
    "typo in a flag": ("--multirn", f"--multirn ({LINE})", "did you mean --multirun?"),
    "flag that is none": ("-x", f"-x ({LINE})", "see python run.py --help"),
    "configuration that is not there": ("--config-name=confg", f"--config-name ({LINE})", "did you mean config?"),
    "typo in auto": ("resume=Auto", f"resume=Auto ({LINE})", "did you mean resume=auto?"),
    "batch for some environments": (
        "env.num_envs=16",
        "collector.frames_per_batch=8 (conf/tuned/dqn/cartpole.yaml:3)",
        "is not a multiple of env.num_envs=16",
    ),
    "replay smaller than what is collected": (
        "collector.frames_per_batch=100000",
        "source.capacity=50000 (conf/tuned/dqn/cartpole.yaml:4)",
        "is less than a batch of collector.frames_per_batch=100000",
    ),
    "replay smaller than what is learned from": (
        "source.batch_size=100000",
        "source.capacity=50000 (conf/tuned/dqn/cartpole.yaml:4)",
        "is less than a batch of source.batch_size=100000",
    ),
    "scheme that MLflow does not know": (
        "logger.mlflow.tracking_uri=htp://foo",
        f"logger.mlflow.tracking_uri=htp://foo ({LINE})",
        "MLflow takes no address that begins with htp:; did you mean http://foo?",
    ),
    "address without a scheme": (
        "logger.mlflow.tracking_uri=localhost:5000",
        f"logger.mlflow.tracking_uri=localhost:5000 ({LINE})",
        "did you mean http://localhost:5000?",
    ),
    "resume of nothing": ("resume=", f"resume= ({LINE})", "is no folder; resume=auto finds the unfinished run"),
    "resume with a plus": ("+resume=outputs/none", f"resume=outputs/none ({LINE})", "there is no such folder"),
    "resume of a very long name": (f"resume={'x' * 300}", "resume=xxx", "there is no such folder"),
    "run that is not there": ("resume=outputs/none", f"resume=outputs/none ({LINE})", "there is no such folder"),
}


@pytest.mark.parametrize(("typed", "where", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_with_its_key_its_origin_and_what_to_type(ask, typed, where, words):
    answer = ask(typed)
    assert answer.code == 2
    assert answer.out == ""
    assert "Traceback" not in answer.err
    assert len(answer.mistakes) == 1
    assert where in answer.mistakes[0]
    assert words in answer.mistakes[0]
    assert os.listdir(ask.folder) == []


@pytest.mark.parametrize(
    ("typed", "where", "words"),
    [
        (["~optimizer.lr", "optimizer.lr=1"], "optimizer.lr=1", "another override takes it out first"),
        (
            ["hooks.log_reward=null", "hooks.log_reward.window=1"],
            "hooks.log_reward.window=1",
            "another override takes it out first",
        ),
        (["--cfg", "job", "optimzer.lr=1"], "optimzer.lr", "did you mean optimizer.lr?"),
        (["--info", "config", "env=cartpol"], "env=cartpol", "did you mean cartpole?"),
        (["optimizer.lr", "=", "1"], "optimizer.lr = 1", "has spaces around the =; write optimizer.lr=1"),
    ],
    ids=str,
)
def test_words_that_are_wrong_together_are_a_mistake(ask, typed, where, words):
    answer = ask(*typed)
    assert (answer.code, answer.out) == (2, "")
    assert answer.mistakes[0].startswith(f"{where} ({LINE})")
    assert words in answer.mistakes[0]
    assert os.listdir(ask.folder) == []


@pytest.mark.parametrize(
    ("typed", "key", "words"),
    [
        (["collector=sync"], "collector.num_collectors=2", "is more than env.num_envs=1: each worker needs an env"),
        (["collector=async", "env.num_envs=3"], "collector.num_collectors=2", "is not a divisor of env.num_envs=3"),
        (["collector=async", "env.num_envs=4", "collector.frames_per_batch=3"], "collector.frames_per_batch=3",
         "is not a multiple of the 2 environments of a worker"),
    ],
    ids=str,
)  # fmt: skip
def test_workers_that_cannot_share_the_environments_are_a_mistake(ask, typed, key, words):
    answer = ask(*typed)
    assert (answer.code, answer.out) == (2, "")
    assert answer.mistakes[0].startswith(f"{key} (")
    assert words in answer.mistakes[0]
    assert os.listdir(ask.folder) == []


@pytest.mark.parametrize("how", ["num_collectors=2", "num_collectors=null collector.env_per_collector=2"])
def test_batches_of_asynchronous_workers_need_to_suit_one_worker_only(how):
    typed = ["collector=async", "env.num_envs=4", "collector.frames_per_batch=2", "source.capacity=1002"]
    assert check(parse_arguments([*typed, *f"collector.{how}".split()])).config


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CKPT_BACKEND", "torhc", "there is no such backend; did you mean torch?"),
        ("CKPT_BACKEND", "pickle", "there is no such backend; choices: torchsnapshot, torch"),
        ("MLFLOW_TRACKING_URI", "ftp://here", "MLflow takes no address that begins with ftp:"),
    ],
)
def test_what_the_environment_says_is_checked_where_it_counts(ask, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    answer = ask("explain=true")
    assert (answer.code, answer.out) == (2, "")
    assert answer.mistakes[0].startswith(f"{name}={value} (environment): {words}")
    assert check(parse_arguments(["checkpoint.backend=torch", "logger=csv"])).config


@pytest.mark.parametrize("uri", ["sqlite:///here.db", "mysql+pymysql://a@b/c", "HTTPS://x", "runs/a:b", "databricks"])
def test_an_address_that_mlflow_takes_is_left_alone(uri):
    assert wrong_address(uri) is None


def test_spaces_around_the_equals_sign_are_one_mistake(ask):
    answer = ask("total_frames", "=", "2000", "seed=3")
    (line,) = answer.mistakes
    assert line == f"total_frames = 2000 ({LINE}): has spaces around the =; write total_frames=2000"
    assert len(ask("total_frames", "=", "2000", "sede=3").mistakes) == 2


def test_a_key_that_is_typed_twice_is_told_of(ask):
    told = ask("seed=1", "seed=2", "explain=true").err
    assert told.splitlines()[0] == "note: seed is typed 2 times: seed=2 counts, and seed=1 does not"
    assert "typed 2 times" not in ask("seed=1", "seed=1", "explain=true").err


def test_a_folder_below_a_file_is_a_mistake(ask):
    (ask.folder / "file").touch()
    for typed in (["hydra.run.dir=file/run"], ["-m", "seed=1,2", "hydra.sweep.dir=file"]):
        (line,) = ask(*typed).mistakes
        assert line == f"{typed[-1]} ({LINE}): file is no folder"


def test_all_mistakes_are_in_one_report(ask):
    answer = ask("seed=-1", "optimzer.lr=1", "env=cartpol", "loss.gamma=x", "a b", "log_every.step=1", "hydra.rn=1")
    starts = ["a b", "env=cartpol", "optimzer.lr", "log_every.step", "seed = -1", 'loss.gamma = "x"', "hydra.rn"]
    assert answer.code == 2
    assert len(answer.mistakes) == len(starts)
    assert all(line.startswith(start) for line, start in zip(answer.mistakes, starts, strict=True))
    assert answer.err.endswith("7 mistakes in the configuration, nothing was started\n")


def test_the_origin_of_a_value_in_a_file_is_its_line(ask, conf):
    file = conf / "optimizer" / "hot.yaml"
    file.write_text("defaults: [adam]\n\n# too much\nlr: -3\n")
    assert ask("optimizer=hot", conf=conf).mistakes == [
        "optimizer.lr = -3 (conf/optimizer/hot.yaml:4): expected a number > 0"
    ]


def test_the_origin_is_the_file_that_is_merged_last(ask, conf):
    (conf / "tuned" / "dqn" / "cartpole.yaml").write_text("# @package _global_\nseed: 1\noptimizer:\n  lr: -1\n")
    assert "(conf/tuned/dqn/cartpole.yaml:4)" in ask(conf=conf).mistakes[0]
    assert "(command line)" in ask("optimizer.lr=-2", conf=conf).mistakes[0]


@pytest.mark.parametrize(
    ("typed", "where"),
    [
        (["seed=0,1,-2"], "seed = -2"),
        (["seed=range(-1,2)"], "seed = -1"),
        (["optimizer.lr=choice(1e-3,abc)"], 'optimizer.lr = "abc"'),
        (["optimizer=adam,sgdd"], "optimizer=sgdd"),
        (["env=cartpole,gym"], "env.id"),
        (["optimizer=adam,sgd", "optimizer.momentum=0.9"], "optimizer.momentum"),
        (["hydra.job.name=a,b"], "hydra.job.name=a,b"),
        (["resume=outputs/some"], "resume=outputs/some"),
        (["target_updater=polyak,trivial"], "target_updater.rate (conf/tuned/dqn/cartpole.yaml:8)"),
        (["network.hidden=[64,64],[64,a]"], 'network.hidden = [64, "a"]'),
        (["hooks=[default],[default,x]"], "hooks=x"),
        (["seed=0,1", "seed=2"], "seed=0,1 (command line): seed is set twice"),
        (["seed=range(3,1)"], "seed=range(3,1) (command line): stands for no value at all"),
        (["seed=range(0,1,0)"], "seed=range(0,1,0)"),
        (["optimizer=glob(x*)"], "optimizer=glob(x*)"),
        (["optimizer.lr=interval(0.1,1)"], "optimizer.lr=interval(0.1,1) (command line): an interval is for sweepers"),
        (["seed=0,1", "hydra.sweep.subdir=same"], "hydra.sweep.subdir=same (command line): every job needs"),
        (
            ["+hydra.sweeper.params.seed='0,1'"],
            "+hydra.sweeper.params.seed='0,1' (command line): Hydra cannot set this",
        ),
    ],
    ids=str,
)
def test_every_value_of_a_sweep_is_checked(ask, typed, where):
    answer = ask("-m", *typed)
    assert answer.code == 2
    assert [line for line in answer.mistakes if line.startswith(where)]
    assert os.listdir(ask.folder) == []


QUICKLY = {
    "optimzer.lr=1": b"did you mean optimizer.lr?",
    "optimiser=adam": b"did you mean optimizer",
    "env=cartpol": b"did you mean cartpole?",
    "env.num_envs=3": b"is not a multiple of env.num_envs=3",
    "hydra.run.dir=.": b"there is a run in this folder already",
}


@pytest.mark.parametrize("typed", QUICKLY)
def test_a_mistake_is_answered_at_once_and_without_torch(tmp_path, typed):
    code = (
        "import sys; from runner.config.main import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'tensordict', 'mlflow', 'gymnasium'} & set(sys.modules); sys.exit(9 if heavy else code)"
    )
    (tmp_path / "run.json").touch()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, typed],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2, done.stderr.decode()
    assert QUICKLY[typed] in done.stderr
    assert os.listdir(tmp_path) == ["run.json"]
    # 0.5 s on an idle core, and 2 s to import torch; of the CPU, for other work makes the clock run on
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
