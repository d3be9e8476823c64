"""Wrong flags, wrong settings of Hydra, and runs that cannot be resumed."""

from collections.abc import Mapping

from tests.campaign.bad_case import Case, Draw, is_name, kind, misspell, right_answers
from tests.campaign.config_space import Space

FLAGS = ("--config-dir", "--multirun", "--help", "--cfg", "--info", "--config-name")
ALL_FLAGS = (
    *FLAGS,
    "--hydra-help",
    "--version",
    "--package",
    "--resolve",
    "--config-path",
    "--run",
    "--shell-completion",
)


@kind("typo of a flag", 2)
def typo_of_flag(space: Space, rng: Draw) -> Case | None:
    flag = rng.choice(FLAGS)
    typed = f"--{misspell(flag[2:], rng)}"
    is_prefix = any(one.startswith(typed) for one in ALL_FLAGS)  # argparse takes those
    return None if is_prefix else Case((typed,), (typed,), (flag,), 1)


@kind("bad flag", 2)
def bad_flag(space: Space, rng: Draw) -> Case:
    argv, name = rng.choice([
        (("-x",), "-x"), (("--seed=3",), "--seed"), (("--seed", "3"), "--seed"),
        (("--config-path=x",), "--config-path"), (("--config-name=nothing",), "nothing"),
        (("--config-dir",), "--config-dir"), (("--config-dir=",), "--config-dir"),
        (("--config-dir=nothing",), "--config-dir"), (("--cfg=nothing",), "--cfg"), (("--info=nothing",), "--info"),
        (("--cfg", "job", "optimzer.lr=1"), "optimzer.lr"), (("--info", "config", "sede=1"), "sede"),
        (("-m", "-m=3"), "-m"), (("--cfg", "job", "env=cartpol"), "env=cartpol"), (("-lr=3",), "-lr"),
        (("--resume=auto",), "--resume"), (("--experimental-rerun=x",), "--experimental-rerun"),
        (("--config-dir=a_file",), "--config-dir"),
    ])  # fmt: skip
    return Case(argv, (name,), files={"a_file": ""})


@kind("typo of a setting of Hydra", 2)
def typo_of_hydra(space: Space, rng: Draw) -> Case | None:
    key = rng.choice([key for key in space.hydra if key.count(".") == 2 and "params" not in key])
    parent, _, name = key.rpartition(".")
    typed = f"{parent}.{misspell(name, rng)}"
    if typed in space.hydra or not is_name(typed) or not isinstance(space.hydra[parent], Mapping) or name[0] == "_":
        return None
    return Case((f"{typed}=1",), (typed,), right_answers(typed, key, list(space.hydra)), 1)


@kind("bad setting of Hydra", 3)
def bad_hydra(space: Space, rng: Draw) -> Case:
    text = rng.choice([
        "hydra.job.chdir=abc", "hydra.run.dir=${nothing}", "hydra.run.dir=", "hydra.run.dir=???", "hydra.run=3",
        "hydra=3", "hydra.mode=MULTIRUN", "hydra/launcher=nothing", "hydra.launcher.n_jobs=2",
        "hydra/job_logging=nothing", "hydra.output_subdir=null", "hydra.run.dir=a_file/run", "hydra.run.dir=a_file",
        "hydra.run.dir=null", "~hydra.run.dir", "~hydra", "~hydra.run", "hydra/nothing=1", "hydra.job_logging=3",
        "hydra.verbose={a:1}", "hydra.searchpath=3", "hydra.searchpath=[file://nothing]",
        "hydra.job.env_copy=[HOOKLINE_HAS_NO_SUCH_VARIABLE]", "hydra.job.env_set=3", "hydra.run.dir=${hydra:no.such}",
        "hydra.run.dir=${hydra.job.nothing}", "hydra.run.dir=${hydra.run.dir}", "hydra.job.num=abc",
        "hydra.launcher._target_=nowhere.Thing", "hydra.callbacks={a:{_target_:nowhere.Thing}}", "hydra.run.dir=[a]",
        "hydra.run.dir={a:b}", "hydra.job.name=[a]", "hydra.sweeper=null", "hydra.launcher=null",
    ])  # fmt: skip
    return Case((text,), (text.strip("~").partition("=")[0],), files={"a_file": ""})


@kind("bad setting of a sweep", 4)
def bad_sweeper(space: Space, rng: Draw) -> Case:
    text = rng.choice([
        "+hydra.sweeper.params.seed='1,2'", "hydra.sweeper.params=3", "hydra/sweeper=nothing",
        "hydra.sweeper.max_batch_size=a", "hydra.sweep.dir=${nothing}", "hydra.sweep.subdir=${nothing}",
        "hydra.sweep.subdir=same", "hydra.sweep.dir=a_file", "resume=a_file", "seed=", "seed=range(3,1)",
        "seed=choice()", "optimizer=glob(x*)", "hydra.sweep.dir=", "seed=0,1,???", "seed=range(0,1,0)", "loss.gamma=1",
        "network.hidden=[64,64],[64,a]", "network.hidden=[64,64],[]a", "hydra.run.dir=a,b",
        "hooks=[default],[default,nothing]", "log_every={updates:1},{updates:0}", "optimizer.betas=[0.9,0.99],[0.9]",
        "device=cpu,'gpu,0'", "seed=sort(3,1,x)", "seed=shuffle(range(-1,2))", "seed=interval(0,1)",
        "seed=tag(a,choice(1,b))", "optimizer.lr=interval(0,1)", "env=cartpole,gym",
        "hooks=default,[default,default]",
    ])  # fmt: skip
    name = text.strip("+").partition("=")[0]
    shown = {"env": "env.id", "hooks": "hooks="}.get(name, name)
    return Case(("-m", text, "loss.gamma=0.5,0.6"), (shown,), origin="(", files={"a_file": ""}, mistakes=2)


@kind("bad resume", 4)
def bad_resume(space: Space, rng: Draw) -> Case:
    runs = [{"folder/x": ""}, *({"folder/run.json": text} for text in ("{", "[]", "{}", '{"schema": 99}', "\xff", "")),
            {"folder/run.json/x": ""}, {"folder/run.json": "{}", "folder/.hydra/config.yaml": "a: 1"}]  # fmt: skip
    words = ["nothing", "5", "true", "[a]", "{a:b}", "''", "", "aut", "Auto", "???", "${nothing}", "'~'", "outputs/*",
             ".", "a_file", "a_file,nothing", "'a\\0b'", "x" * 300, "/", "1e3"]  # fmt: skip
    value, files = rng.choice([(word, {"a_file": "x"}) for word in words] + [("folder", files) for files in runs])
    prefix = rng.choice(["", "", "", "+", "++"])
    return Case((f"{prefix}resume={value}",), ("resume",), files=files)
