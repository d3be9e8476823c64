"""Wrong files of the user's: broken YAML, defaults lists that lead nowhere, wrong settings, wrong targets, sweeps."""

import re

import yaml

from tests.campaign.bad_case import Case, Draw, is_name, kind, misspell, right_answers
from tests.campaign.bad_values import bad_types, out_of_range
from tests.campaign.config_space import Leaf, Space

NODES = ("optimizer", "source", "loss", "network", "exploration", "scheduler", "evaluation", "checkpoint", "collector")
"""Groups whose choices are one node each."""
SAME_IN_YAML = ("nan", "inf", "-inf", "true", "false", "2.5", "1.000001")
"""What is written alike here and there, and read as something else."""


def user_file(group: str) -> tuple[tuple[str, ...], str]:
    """What to type for a choice of the user's, and its file."""
    return ("--config-dir", "mine", "tuned=null", f"{group}=mine"), f"mine/{group}/mine.yaml"


def node_text(space: Space, group: str) -> str:
    return str(yaml.safe_dump(space.plain.tree[group], sort_keys=False))


BROKEN = [
    "\tlr: 1\n",
    "a:\n\tb: 1\n",
    "extra: [1\n",
    "extra: {a: 1\n",
    "extra: 'abc\n",
    "extra 1\n",
    "extra: a: b\n",
    "extra: *nothing\n",
    "extra: !!python/object/apply:os.system ['touch pwned']\n",
    "extra: !mine 3\n",
    "? [1, 2]\n: 3\n",
    "   extra: 1\n",
    "- extra\n",
    "extra: '\x01'\n",
    "%extra\n",
    "---\nextra: 1\n",
    "extra: &a [*a]\n",
    "extra: 1\nextra: 2\n",
]


@kind("broken YAML", 6)
def broken_yaml(space: Space, rng: Draw) -> Case:
    group = rng.choice(NODES)
    argv, path = user_file(group)
    text = node_text(space, group)
    lines = text.splitlines(keepends=True)
    place = rng.randrange(1, len(lines) + 1)
    inserted = "".join([*lines[:place], rng.choice(BROKEN[:-1]), *lines[place:]])
    text = rng.choice([inserted, inserted, text + lines[-1], text + rng.choice(BROKEN)])
    return Case(argv, (path, f"{group}.extra"), origin=path, files={path: text})


@kind("a file that is no mapping", 2)
def no_mapping(space: Space, rng: Draw) -> Case:
    group = rng.choice(NODES)
    argv, path = user_file(group)
    deep = ["[" * 400 + "]" * 400, "{" * 900, "a: " + "[" * 600 + "]" * 600]
    text = rng.choice(
        ["- a\n- b\n", "text\n", "3\n", "[]\n", "true", "'x'", "null", "", "# nothing\n", "\ufeff- a", *deep]
    )
    return Case(argv, (path, group), origin=path, files={path: text}, mistakes=2)


def bad_lists(group: str, choice: str) -> list[str]:
    """Defaults lists of a choice of ``group`` that name things that are not there, or themselves."""
    return [
        "3", "{a: b}", "text", "[3]", "[{a: b, c: d}]", "[[a]]", "[nothing]", "[/nogroup: a]", "[/optimizer: nothing]",
        "[override /nogroup: a]", "[override /optimizer: nothing]", f"[{choice}, {choice}]", "[_self_, _self_]",
        "[mine]", f"[{choice}, other]", "[/optimizer: '${nothing}']", "['${nothing}']", "[nogroup/mine]",
        "[../../../etc/passwd]", f"[override /optimizer: adam, {choice}]", "[/optimizer: 3]", "[/optimizer: {a: b}]",
        "[null: a]", "['???']", "[/optimizer: '???']", f"[{choice}@a.b.c.d: 1]", f"['/{group}@: {choice}']",
        "[nothing /optimizer: adam]", "['']", "[{override /optimizer: adam}, {override /optimizer: sgd}]", "['  ']",
        "[/: a]", "[/optimizer: [nothing]]",
    ]  # fmt: skip


@kind("bad defaults list", 6)
def bad_defaults(space: Space, rng: Draw) -> Case:
    group = rng.choice(NODES)
    argv, path = user_file(group)
    text = f"defaults: {rng.choice(bad_lists(group, rng.choice(space.groups[group])))}\n{node_text(space, group)}"
    files = {path: text, f"mine/{group}/other.yaml": "defaults: [mine]\n"}
    return Case(argv, (path, f"{group}/mine", f"mine/{group}/other"), origin="mine", files=files, mistakes=2)


@kind("typo in a file", 4)
def typo_in_file(space: Space, rng: Draw) -> Case | None:
    group = rng.choice(NODES)
    argv, path = user_file(group)
    names = list(space.plain.nodes[group])
    name = rng.choice([leaf.key.partition(".")[2] for leaf in space.plain.leaves if leaf.key.startswith(f"{group}.")])
    typed = misspell(name, rng)
    if typed in names or not is_name(typed):
        return None
    text = node_text(space, group)
    answers = tuple(f"{group}.{answer}" for answer in right_answers(typed, name, names))
    origin = f"({path}:{len(text.splitlines()) + 1})"
    return Case(argv, (f"{group}.{typed}",), answers, 1, origin, {path: f"{text}{typed}: 1\n"})


@kind("wrong value in a file", 4)
def wrong_in_file(space: Space, rng: Draw) -> Case | None:
    group = rng.choice(NODES)
    argv, path = user_file(group)
    leaf: Leaf = rng.choice([leaf for leaf in space.plain.leaves if leaf.key.startswith(f"{group}.")])
    wrong = [text for text in [*bad_types(leaf.hint), *out_of_range(leaf.hint)] if text not in SAME_IN_YAML]
    if not wrong:
        return None
    name = leaf.key.partition(".")[2]
    others = re.sub(rf"^{name}:.*\n(( |-).*\n)*", "", node_text(space, group), flags=re.M)
    origin = f"({path}:{len(others.splitlines()) + 1})"
    text = f"{others}{name}: {rng.choice(wrong).replace(':', ': ')}\n"
    return Case(argv, (leaf.key,), origin=origin, files={path: text})


@kind("wrong setting in an experiment", 3)
def wrong_experiment(space: Space, rng: Draw) -> Case | None:
    key = rng.choice([leaf.key for leaf in space.plain.leaves if leaf.key.count(".") == 1])
    group, name = key.split(".")
    typed = misspell(name, rng)
    if typed in space.plain.nodes[group] or not is_name(typed) or f"{group}.{typed}" in space.plain.values:
        return None
    answers = tuple(f"{group}.{answer}" for answer in right_answers(typed, name, list(space.plain.nodes[group])))
    path = "mine/experiment/mine.yaml"
    text = f"# @package _global_\ndefaults:\n  - override /tuned: null\n{group}:\n  {typed}: 1\n"
    argv = ("--config-dir", "mine", "experiment=mine")
    return Case(argv, (f"{group}.{typed}",), answers, 1, f"({path}:5)", {path: text})


@kind("wrong target", 3)
def wrong_target(space: Space, rng: Draw) -> Case | None:
    context = space.context(rng)
    node = rng.choice([key for key in context.nodes if key])
    target = context.values[f"{node}._target_"]
    module, _, name = target.rpartition(".")
    misspelt = f"{module}.{misspell(name, rng)}"
    typed = rng.choice([misspelt, f"{module}x.{name}", "nowhere.Thing", module, "3", "[a]", "os.path", "a..b", "'a b'",
                        "null", "'???'"])  # fmt: skip
    return None if typed == target else Case((*context.argv, f"{node}._target_={typed}"), (f"{node}._target_",))


@kind("unknown environment", 2)
def unknown_env(space: Space, rng: Draw) -> Case | None:
    id = rng.choice(["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1"])
    name, _, version = id.partition("-")
    typed = f"{misspell(name, rng)}-{version}"
    return None if typed == id or not typed[0].isalpha() else Case((f"env.id={typed}",), ("env.id",), (id,), 1)


@kind("bad sweep in a file", 2)
def bad_params(space: Space, rng: Draw) -> Case:
    key, value, name = rng.choice([
        ("sede", "1,2", "sede"), ("seed", "1,-2", "seed"), ("seed", "1,", "seed"), ("seed", "range(0,", "seed"),
        ("seed", "[1", "seed"), ("optimizer.lrr", "1,2", "optimizer.lrr"), ("optimizer.lr", "1e-3,x", "optimizer.lr"),
        ("env", "cartpole,cartpol", "env=cartpol"), ("optimizer", "adam,sgd,sdg", "optimizer=sdg"),
        ("optimzer", "adam,sgd", "optimzer"), ("hooks.recorde.x", "1,2", "hooks.recorde"),
        ("loss.gamma", "0.1,0.2", "loss.gamma"), ("device", "cpu,gpu", "device"),
    ])  # fmt: skip
    path = "mine/experiment/mine.yaml"
    text = f"# @package _global_\nhydra:\n  sweeper:\n    params:\n      {key}: '{value}'\n"
    argv = ("-m", "--config-dir", "mine", "experiment=mine", "loss.gamma=0.5,0.6")
    return Case(argv, (name,), origin=f"(hydra.sweeper.params, {path}:5)", files={path: text}, mistakes=2)
