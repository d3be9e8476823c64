"""Stored configurations that name what no run has a reason to build, by its name or by another one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.campaign.hostile import CANARY, SECRET, Payload
from tests.campaign.hostile_files import plant
from tests.campaign.hostile_seal import Change, config

TOUCH = f"touch {CANARY}"
REFUSED = ("refused",)

PLAIN = """
    os.system posix.system builtins.eval builtins.exec builtins.__import__ builtins.open subprocess.Popen pty.spawn
    subprocess.check_output importlib.import_module runpy.run_path code.interact ctypes.CDLL pickle.loads
    marshal.loads shelve.open pathlib.Path.touch shutil.rmtree webbrowser.open urllib.request.urlopen
    socket.create_connection http.server.test yaml.unsafe_load numpy.load torch.load torch.serialization.load
    torch.hub.load torch.jit.load torch.package.PackageImporter torch.utils.cpp_extension.load_inline
    torch.multiprocessing.spawn mlflow.run hydra.utils.instantiate omegaconf.OmegaConf.register_new_resolver
    gymnasium.make gymnasium.register logging.os.system antigravity.webbrowser.open this.c planted.Hook
    run.planted.Hook
""".split()
"""What does harm under its own name."""

ALIASES = """
    torch.nn.functional.torch.load torch.nn.functional.torch.os.system torch.nn.modules.module.torch.hub.load
    torch.nn.functional.importlib.import_module torch.nn.functional.torch.serialization.pickle.loads
    torch.nn.functional.torch.utils.cpp_extension.subprocess.Popen
    torch.nn.functional.torch._inductor.config.os.system torch.nn.modules.module.functools.partial
    torch.nn.modules.module.warnings.sys.exit torch.nn.functional.torch._dynamo.run
    torch.optim.optimizer.warnings.sys.exit torch.optim.lr_scheduler.types.FunctionType
    torch.optim.optimizer.functools.reduce torch.nn.parallel.distributed.inspect.os.system
    torch.nn.Linear.__init__.__globals__ torch.nn.Linear.__class__ torch.nn.Module.__class__.__subclasses__
    torch.nn.functional.__builtins__.eval torch.nn.functional.__loader__.exec_module
    torch.nn.functional.__spec__.loader.load_module torch.nn.init.normal_ torch.optim.Adam.zero_grad
    gymnasium.envs.registration.importlib.import_module gymnasium.envs.registration.load_env_creator
    gymnasium.envs.registration.make gymnasium.envs.registration.load_plugin_envs
    gymnasium.envs.registration.sys.exit gymnasium.wrappers.RecordVideo gymnasium.vector.AsyncVectorEnv
    gymnasium.utils.play.play gymnasium.utils.save_video.os.system gymnasium.envs.classic_control.cartpole.np.load
    gymnasium.error.DependencyNotInstalled gymnasium.core.Wrapper runner.config.jobs.os.system
    runner.config.stored.yaml.unsafe_load runner.config.targets.importlib.import_module
    runner.config.targets.resolve_target runner.config.main.main runner.config.main.cli runner.config.build.Builder
    runner.runs.os.system runner.runs.claim_folder runner.runs.RunFolder runner.runs.remove_unstarted
    runner.seeding.np.load runner.hook.re.compile runner.checkpoint.backends.torch.load
    runner.checkpoint.store.shutil.rmtree runner.checkpoint.manifest.write_manifest
    runner.checkpoint.durable.sync_tree runner.loggers.mlflow_process.SenderProcess
    runner.loggers.mlflow_process.subprocess.Popen runner.loggers.mlflow_client.os.system
    runner.loggers.files.open_regular runner.spec.torch.load runner.builders.Trainer hooks.progress_bar.sys.exit
    hooks.progress_bar.tqdm hooks.recorder
""".split()
"""The same things, and more, as they can be reached from modules that a run may name."""

ODD = (
    "",
    ".",
    "os.",
    ".os.system",
    "os..system",
    "torch.nn.",
    "torch.nn..Linear",
    "оs.system",
    "ｏｓ.system",
    "os.sуstem",
    "os\u200b.system",
    "os.system\0",
    "os.system\n",
    " os.system",
    "$(touch executed).x",
    "`touch executed`.x",
    "a;b.c",
    "\x1b[2J\x1b]0;title\x07os.system",
    "x." * 5000,
    "x" * 100_000,
    "os:system",
    "os/system",
    "../planted.Hook",
    "hooks.__init__.os",
    "hooks.hydra_plugins.evil.Hook",
    "torch.nn.Linear()",
    "lambda: 0",
    "__main__.x",
)
"""Names that are none, or look like others."""


def target_payloads() -> Iterator[Payload]:
    """Each name as a hook; some of them in all places, and written in all ways, there are."""
    for target in (*PLAIN, *ALIASES, *ODD):
        yield Payload("target", target[:60].encode("unicode_escape").decode(), hook(target), expect=REFUSED)
    for name, change in _PLACES.items():
        yield Payload("place", name, _config(change), expect=REFUSED)


def hook(target: Any, **arguments: Any) -> Callable[[Path], None]:
    """A hook of that target in the stored configuration."""
    return _config(_set(hooks__evil={"_target_": target, "command": TOUCH, **arguments}))


def _config(change: Change, planted: str = "planted.py") -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        plant(run, planted)
        config(change)(run)

    return apply


def _set(**values: Any) -> Change:
    """Set keys of the configuration; in their names two underscores within a name stand for a dot."""

    def change(tree: dict[str, Any]) -> None:
        for key, value in values.items():
            node, names = tree, [key] if key.startswith("_") else key.split("__")
            for name in names[:-1]:
                node = node[name]
            node[names[-1]] = value

    return change


EVIL = {"_target_": "os.system", "command": TOUCH}
CARTPOLE = "gymnasium.envs.classic_control.CartPoleEnv"
ENVIRONMENT = {"_target_": "runner.envs.vector.make_environment", "num_envs": 1}
SERVER = {"_target_": "runner.loggers.mlflow.MLFlowLogger", "tracking_uri": "http://127.0.0.1:9"}
DATABASE = SERVER | {"tracking_uri": f"sqlite:///{SECRET}/x.db"}
_PLACES: dict[str, Change] = {
    "in place of the root": _set(**EVIL),
    "in place of the environment": _set(env=EVIL),
    "in place of the network": _set(network=EVIL),
    "in place of the optimizer": _set(optimizer=EVIL),
    "in place of the learner": _set(learner=EVIL),
    "in place of the checkpoints": _set(checkpoint=EVIL),
    "in place of a logger": _set(logger__csv=EVIL),
    "as a new root key": _set(evil=EVIL),
    "inside an argument": _set(env__make={"_target_": CARTPOLE, "x": [EVIL]}),
    "inside a list of lists": _set(network__hidden=[[[EVIL]]]),
    "inside a mapping of a mapping": _set(env__kwargs={"a": {"b": {"c": EVIL}}}),
    "as a key of a key": _set(hooks__evil={"_target_": {"_target_": "os.system"}}),
    "as a list": _set(hooks__evil={"_target_": ["os.system"]}),
    "as a number": _set(hooks__evil={"_target_": 7}),
    "as null": _set(hooks__evil={"_target_": None}),
    "missing": _set(hooks__evil={"_target_": "???"}),
    "with _partial_": _set(hooks__evil=EVIL | {"_partial_": True}),
    "with _args_": _set(hooks__evil={"_target_": "os.system", "_args_": [TOUCH]}),
    "with _recursive_": _set(hooks__evil=EVIL | {"_recursive_": False}),
    "with _convert_": _set(hooks__evil=EVIL | {"_convert_": "object"}),
    "allowed, with _args_": _set(hooks__evil={"_target_": "hooks.log_reward.LogReward", "_args_": [EVIL]}),
    "with a list of what may be executed": _set(hooks__evil=EVIL, _execution_whitelist_=["os.*"]),
    "by an interpolation": _set(hooks__evil={"_target_": "${hooks.evil.name}", "name": "os.system"}),
    "by a chain of them": _set(hooks__evil={"_target_": "${.a}", "a": "${.b}", "b": "os.system"}),
    "put together": _set(hooks__evil={"_target_": "${.a}.${.b}", "a": "os", "b": "system"}),
    "a whole node by an interpolation": _set(env__kwargs={"x": EVIL}, hooks__evil="${env.kwargs.x}"),
}


def misuse_payloads() -> Iterator[Payload]:
    """What may be named, used for what it is not for: ids that import, addresses, paths, settings of Hydra."""
    for id in _IDS:
        yield Payload("misuse", f"env.id is {id[:40]!r}", _config(_set(env__id=id)), expect=REFUSED)
    for name, change in _REFUSED.items():
        yield Payload("misuse", name, _config(change), expect=REFUSED)
    for name, change in _LEFT_OUT.items():
        yield Payload("misuse", name, _config(change), expect=("harmless",))
    for name, change in _MISFITS.items():
        yield Payload("misuse", name, _config(change), expect=("refused", "crashed"))
    for name, value in _HYDRA.items():
        yield Payload("misuse", f"hydra.{name}", _config(_set(hydra={name: value})), expect=REFUSED)
    for name, files in _INSIDE.items():
        yield Payload("misuse", name, _plant_all(files), is_inside=True, expect=("harmless",))
    for name, change in _NAMED_INSIDE.items():
        yield Payload("misuse", name, _config(change, "planted_inside.py"), is_inside=True, expect=REFUSED)


def _plant_all(files: list[str]) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        for name in files:
            plant(run, name)

    return apply


_IDS = (
    "planted:CartPole-v1", "run.planted:CartPole-v1", "os:system", ":CartPole-v1", "a:b:c", ".planted:X-v0",
    "gymnasium.planted:X-v0", "gymnasium.utils.play:CartPole-v1", "antigravity:X-v0", "planted:planted:X-v0",
    "ns/planted:X-v0", "planted :X-v0", "\x1b[2J:X-v0", "GymV26Environment-v0", "../planted-v0", "x" * 100_000,
)  # fmt: skip
_REFUSED: dict[str, Change] = {
    "an id in a hook": _set(hooks__evil={**ENVIRONMENT, "id": "planted:CartPole-v1"}),
    "an id in the collector": _set(collector__environment={**ENVIRONMENT, "id": "planted:CartPole-v1"}),
    "an id by an interpolation": _set(env__id="${env.kwargs.x}", env__kwargs={"x": "planted:X-v0"}),
    "an id put together": _set(env__id="${env.kwargs.x}:X-v0", env__kwargs={"x": "planted"}),
    "a logger among the hooks": _set(hooks__evil=SERVER),
    "a logger by an interpolation": _set(logger__evil="${hooks.evil}", hooks__evil=DATABASE),
    "loggers that lead nowhere": _set(logger="${nowhere}"),
    "a logger that leads nowhere": _set(logger__evil="${nowhere}"),
    "a run of another folder": _set(logger__csv={"_target_": "runner.loggers.csv.CSVLogger", "run": SECRET}),
    "checkpoints of another folder": _set(checkpoint__run=SECRET),
    "checkpoints of another kind": _set(checkpoint__backend="pickle"),
    "replay rows of another folder": _set(source__run=SECRET),
    "replay rows of another kind": _set(source__storage="../../secret"),
    "trust that it makes use of": _set(trust=["os"], hooks__evil=EVIL),
    "a file of an environment": _set(env__kwargs={"xml_file": "/etc/passwd"}),
    "a file beside us": _set(env__kwargs={"xml_file": "./planted.pt"}),
    "a hidden file": _set(env__kwargs={"rom": ".planted"}),
    "a file at home": _set(env__kwargs={"path": "~/.bashrc"}),
    "a file deep inside": _set(env__kwargs={"a": [{"b": "s3://evil/x"}]}),
    "a file of a class": _set(env__id=None, env__make={"_target_": CARTPOLE, "render_mode": "../../planted"}),
    "an argument that is not one": _set(env__kwargs={"entry_point": "planted:Env"}),
    "the same argument twice": _set(env__kwargs={"id": "planted:X-v0", "disable_env_checker": False}),
    "a device": _set(device="cuda:0; touch executed"),
    "a device that is a path": _set(device="/dev/sda"),
    "threads": _set(threads=10**9),
    "a seed of 100,000 digits": _set(seed="9" * 10**5),
    "a text for a number": _set(total_frames="__import__('os').system('touch executed')"),
    "a defaults list": _set(defaults=["../../../../etc/passwd"]),
}
_LEFT_OUT: dict[str, Change] = {
    "an address of MLflow": _set(logger__csv=SERVER),
    "trust in itself": _set(trust=["os", "planted"]),
    "another folder to resume": _set(resume="/etc"),
    "an explanation": _set(explain=True),
}
_MISFITS: dict[str, Change] = {
    "loggers that are an interpolation": _set(logger="${hooks}"),
    "a network of torch": _set(network={"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 2}),
    "an environment that is a network": _set(env__id=None, env__make={"_target_": "torch.nn.Identity"}),
    "a capacity": _set(source__capacity=10**15),
    "a network of 10^12": _set(network__hidden=[10**12]),
}
"""Parts that are allowed and no good; the run ends in one line, but as a crash."""
_HYDRA: dict[str, Any] = {
    "run": {"dir": "/etc"},
    "job": {"chdir": True, "env_set": {"LD_PRELOAD": "x.so"}},
    "callbacks": {"x": {"_target_": "os.system"}},
    "searchpath": ["file:///etc"],
    "launcher": EVIL,
    "sweeper": EVIL,
    "job_logging": {"()": "os.system"},
    "output_subdir": "../../secret",
}
_INSIDE: dict[str, list[str]] = {
    "a plugin of Hydra in the folder": ["hydra_plugins/evil.py"],
    "a package of plugins in the folder": ["hydra_plugins/hookline/__init__.py"],
    "modules called like others": """torch.py yaml.py numpy.py mlflow.py sitecustomize.py usercustomize.py colorama.py
    pandas.py IPython.py matplotlib.py psutil.py orjson.py pyspark.py shimmy.py jax.py runner/__init__.py
    hooks/__init__.py conf/config.yaml""".split(),
}
_NAMED_INSIDE: dict[str, Change] = {
    "a module to be named": _set(hooks__evil={"_target_": "planted_inside.Hook"}),
    "a module to be named by an id": _set(env__id="planted_inside:X-v0"),
}
