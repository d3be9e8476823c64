"""Wrong names, wrong values, overrides that contradict each other, sweeps with something wrong in them."""

from collections.abc import Callable, Mapping
from typing import Any

from tests.campaign.bad_case import LETTERS, Case, Draw, edit, is_name, kind, misspell, right_answers
from tests.campaign.bad_values import bad_types, out_of_range, written
from tests.campaign.config_space import INCOMPLETE, Context, Space

LOOK_ALIKES = dict(zip("aceijopsxynultr", "асеіјорѕхуոսⅼτг", strict=True))
"""Letters that look like ours and are of another alphabet."""
UNITS = ("env_steps", "frames", "updates", "episodes", "batches", "seconds")
NEEDED = ("env", "collector", "loss", "network", "source", "optimizer", "evaluation", "learner")
GLOBAL = ("algo", "env", "tuned", "experiment")
"""Groups whose choices set keys anywhere."""


def is_key(context: Context, key: str) -> bool:
    """Whether a key could be meant: it is in the tree, or it is a parameter or a unit."""
    parent, _, name = key.rpartition(".")
    is_unit = isinstance(context.values.get(parent), Mapping) and name in UNITS
    return key in context.values or name in context.nodes.get(parent, {}) or is_unit


def typo_of_key(space: Space, rng: Draw, edits: int) -> Case | None:
    context = space.context(rng)
    key = rng.choice([key for key in context.values if "_target_" not in key])
    parts = key.split(".")
    place = rng.randrange(len(parts))
    typed = ".".join([*parts[:place], misspell(parts[place], rng, edits), *parts[place + 1 :]])
    if is_key(context, typed) or not is_name(typed) or typed in space.groups:
        return None
    value = context.values[key]
    answers = right_answers(typed, key, [*context.values, *space.groups])
    text = f"{typed}={1 if isinstance(value, Mapping) else written(value)}"
    return Case((*context.argv, text), (typed,), answers, edits)


@kind("typo of a key, 1 edit", 16)
def typo_of_key_1(space: Space, rng: Draw) -> Case | None:
    return typo_of_key(space, rng, 1)


@kind("typo of a key, 2 edits", 8)
def typo_of_key_2(space: Space, rng: Draw) -> Case | None:
    return typo_of_key(space, rng, 2)


@kind("typo of a key taken out", 2)
def typo_after_tilde(space: Space, rng: Draw) -> Case | None:
    case = typo_of_key(space, rng, 1)
    return case and Case((*case.argv[:-1], f"~{case.names[0]}"), case.names, case.answers, 1)


@kind("typo of a group", 6)
def typo_of_group(space: Space, rng: Draw) -> Case | None:
    group = rng.choice([*space.groups, "hydra/launcher", "hydra/sweeper"])
    edits = rng.choice((1, 1, 2))
    typed = misspell(group, rng, edits)
    root = [key for key in space.plain.values if "." not in key]
    if typed in (group, *space.groups, *root) or not is_name(typed):
        return None
    choice = rng.choice(space.groups.get(group, ["basic"]))
    return Case((f"{typed}={choice}",), (typed,), right_answers(typed, group, [*space.groups, *root]), edits)


def typo_of_choice(space: Space, rng: Draw, edits: int) -> tuple[str, str, tuple[str, ...]] | None:
    """A group, a word that is no choice of it, and the right answers."""
    group = rng.choice(list(space.groups))
    choice = rng.choice(space.groups[group])
    typed = misspell(choice, rng, edits)
    if typed in space.groups[group] or not is_name(typed):
        return None
    return group, typed, right_answers(typed, choice, space.groups[group])


@kind("typo of a choice", 10)
def misspelt_choice(space: Space, rng: Draw) -> Case | None:
    edits = rng.choice((1, 1, 2))
    if (found := typo_of_choice(space, rng, edits)) is None:
        return None
    group, typed, answers = found
    others = [choice for choice in space.groups[group] if choice not in answers]
    listed = others and group in ("hooks", "logger") and rng.random() < 0.5
    text = f"{group}=[{rng.choice(others)},{typed}]" if listed else f"{group}={typed}"
    return Case((text,), (f"{group}={typed}",), answers, edits)


@kind("look-alike letter", 6)
def look_alike(space: Space, rng: Draw) -> Case | None:
    context = space.context(rng)
    leaf, group = rng.choice(context.leaves), rng.choice(list(space.groups))
    name, value = rng.choice([(leaf.key, written(leaf.value)), (group, space.groups[group][0])])
    place = rng.choice([place for place, letter in enumerate(name) if letter in LOOK_ALIKES] or [0])
    strange = rng.choice([LOOK_ALIKES.get(name[place], "ｍ"), f"{name[place]}\u200b"])
    typed = name[:place] + strange + name[place + 1 :]
    return Case((*context.argv, f"{typed}={value}"), (typed, typed.replace("\u200b", r"\u200b")), (name,), 1)


@kind("unknown key", 5)
def unknown_key(space: Space, rng: Draw) -> Case | None:
    context = space.context(rng)
    parent = rng.choice(list(context.nodes))
    name = "".join(rng.choices(LETTERS[:-1], k=rng.randint(3, 12)))
    typed = f"{parent}.{name}".removeprefix(".")
    if is_key(context, typed) or typed in space.groups:
        return None
    return Case((*context.argv, f"{rng.choice(['', '', '+'])}{typed}={rng.choice(['1', 'x', '[1]'])}"), (typed,))


@kind("key of another choice", 5)
def key_of_another(space: Space, rng: Draw) -> Case | None:
    group = rng.choice([group for group in space.groups if group not in GLOBAL])
    chosen, other = (space.choose(group, choice) for choice in rng.choices(space.groups[group], k=2))
    keys = [key for key in other.values if key.startswith(f"{group}.") and not is_key(chosen, key)]
    if not keys or "_target_" in (key := rng.choice(keys)) or not space.stands_alone(chosen.argv[0]):
        return None
    owners = tuple(choice for choice in space.groups[group] if key in space.choose(group, choice).values)
    return Case((*chosen.argv, f"{key}=1"), (key,), owners, 1)


@kind("bad choice", 4)
def bad_choice(space: Space, rng: Draw) -> Case | None:
    group = rng.choice(list(space.groups))
    word = "".join(rng.choices(LETTERS[:-1], k=6))
    typed = rng.choice([word, "3", "true", "1.5", "{a:1}", "[[a]]", "''", "???"])
    return Case((f"{group}={typed}",), (group,))


def bad_value(space: Space, rng: Draw, values: Callable[[Any], list[str]]) -> Case | None:
    context = space.context(rng)
    leaf = rng.choice(context.leaves)
    wrong = values(leaf.hint)
    return Case((*context.argv, f"{leaf.key}={rng.choice(wrong)}"), (leaf.key,)) if wrong else None


@kind("wrong type", 14)
def wrong_type(space: Space, rng: Draw) -> Case | None:
    return bad_value(space, rng, bad_types)


@kind("out of range", 10)
def beyond_range(space: Space, rng: Draw) -> Case | None:
    return bad_value(space, rng, out_of_range)


@kind("no value", 3)
def no_value(space: Space, rng: Draw) -> Case | None:
    return bad_value(space, rng, lambda hint: ["???", "'???'"] if "str" in str(hint) else ["", "???", "''"])


@kind("bad interpolation", 6)
def bad_interpolation(space: Space, rng: Draw) -> Case | None:
    link = misspell(rng.choice(space.plain.leaves).key, rng, 2)
    bad = ["${no.such_key}", f"${{{link}}}", "${oc.env:HOOKLINE_HAS_NO_SUCH_VARIABLE}", "${nope:1}", "${hydra:no.such}",
           "${oc.decode:'['}", "${eval:1+1}", "${.nope}", "${seed", "${}", "${seed}}", "x${no.such_key}y"]  # fmt: skip
    return bad_value(space, rng, lambda _: [] if link in space.plain.values else bad)


@kind("interpolation cycle", 3)
def cycle(space: Space, rng: Draw) -> Case | None:
    context = space.context(rng)
    keys = [leaf.key for leaf in rng.sample(context.leaves, rng.randint(1, 4))]
    typed = [f"{key}=${{{after}}}" for key, after in zip(keys, [*keys[1:], keys[0]], strict=True)]
    return Case((*context.argv, *typed), tuple(keys))


@kind("bad syntax", 6)
def bad_syntax(space: Space, rng: Draw) -> Case | None:
    leaf, group = rng.choice(space.plain.leaves), rng.choice(list(space.groups))
    key, value, choice = leaf.key, written(leaf.value), rng.choice(space.groups[group])
    text = rng.choice([
        key, f"{key}:{value}", f"{key} = {value}", f"{key}= [1", f"{key}=[1,2", f"={value}", f"{key}={{a:1",
        f"{key}='x", f'{key}="x', f"{key}=a b]", f"{key}=(1,2)", f"{key}=a=b", f".{key}=1", f"{key}.=1", f"{key}..x=1",
        f"+={value}",
        f"-{key}=1", f"/{group}={choice}", f"!{key}", f"{key}=1]", f"{key}=range(", f"{key}=glob(a", f"{key}[0]=1",
        f"@{group}={choice}", f"{group}@={choice}", f"+++{key}=1", f"~~{key}", f"{key}=nope(3)", f"{key}=1,,2",
        f"{key}=[1,,2]", f"{group}:{choice}", f"{group} {choice}", f"{group}/={choice}",
        "", " ", "=", "~", "+", "'", "\\", "#", "$", "\n",
    ])  # fmt: skip
    return Case((text,), (text.strip()[:20] or f"'{text}'".replace("\n", " "),))


@kind("conflict", 6)
def conflict(space: Space, rng: Draw) -> Case | None:
    context = space.context(rng)
    leaf = rng.choice(context.leaves)
    key, value = leaf.key, written(leaf.value)
    named = [key for key in context.values if key.startswith(("hooks.", "logger.")) and key.count(".") == 1]
    item = rng.choice(named or ["hooks.nothing"])
    is_plain = not isinstance(leaf.value, Mapping | list | None)
    argv, name = rng.choice([
        ((f"{key}.below={value}" if is_plain else f"{key}.x.y={value}",), key),
        ((f"+{key}={value}",) if is_plain else (f"~{key}=x",), key),
        ((f"~{key}=nonsense",), key),
        ((f"~{key}", f"{key}={'{}x' if isinstance(leaf.value, Mapping) else value}"), key),
        ((f"{key}={value}", f"~{key}", f"~{key}"), key),
        (("-m", f"{key}={value},{value}", f"{key}={value}"), key),
        ((f"~{item}", f"{item}.x=1"), item),
        ((f"{item}=null", f"{item}.x=1"), item),
    ])  # fmt: skip
    return Case((*context.argv, *argv), (name,), mistakes=2)


@kind("bad value in a sweep", 8)
def bad_sweep(space: Space, rng: Draw) -> Case | None:
    context = space.context(rng)
    leaf = rng.choice([leaf for leaf in context.leaves if leaf.value is not None])
    wrong, good = [*bad_types(leaf.hint), *out_of_range(leaf.hint)], written(leaf.value)
    if not wrong or "${" in good:
        return None
    values = [*[good] * rng.randint(1, 4), rng.choice(wrong)]
    rng.shuffle(values)
    text = rng.choice([",".join(values), f"choice({','.join(values)})"])
    more = ("seed=1,2",) if leaf.key != "seed" and rng.random() < 0.5 else ()
    return Case(("-m", *context.argv, *more, f"{leaf.key}={text}"), (leaf.key,))


@kind("bad choice in a sweep", 3)
def bad_sweep_of_choices(space: Space, rng: Draw) -> Case | None:
    if (found := typo_of_choice(space, rng, 1)) is None:
        return None
    group, typed, answers = found
    values = [typed, *(choice for choice in space.groups[group] if f"{group}={choice}" not in INCOMPLETE)]
    rng.shuffle(values)
    more = () if group in GLOBAL else ("tuned=null",)  # for some of its values fit one choice only
    return Case(("-m", *more, f"{group}={','.join(values)}"), (f"{group}={typed}",), answers, 1)


@kind("several values without -m", 2)
def no_flag(space: Space, rng: Draw) -> Case | None:
    leaf = rng.choice(space.plain.leaves)
    value = written(leaf.value)
    text = rng.choice([f"{value},{value}", f"choice({value},{value})", "range(1,3)", "interval(0,1)", "glob(*)"])
    return Case((f"{leaf.key}={text}",), (leaf.key,))


@kind("bad +key or ~key", 4)
def plus_and_tilde(space: Space, rng: Draw) -> Case | None:
    context = space.context(rng)
    node = rng.choice([key for key in context.nodes if key])
    group, injected = rng.choice(list(space.groups)), rng.choice(context.injected)
    text, name = rng.choice([
        (f"+{injected}=1", injected),
        (f"~{node}.nothing_here", f"{node}.nothing_here"),
        (f"~{(needed := rng.choice(NEEDED))}", needed),
        (f"+{group}=nothing_here", f"{group}=nothing_here"),
        (f"++{group}={space.groups[group][0]}", group),
        (f"+{node}.x.y.z=1", f"{node}.x"),
        (f"++{node}.nothing_here=1", f"{node}.nothing_here"),
        ("+nothing_here=1", "nothing_here"),
        (f"~{group}=nothing_here", group),
        (f"{group}@nowhere={space.groups[group][0]}", group),
        (f"{edit(group, rng)}_@x=1", group[:1]),
    ])  # fmt: skip
    return Case((*context.argv, text), (name,), mistakes=2)
