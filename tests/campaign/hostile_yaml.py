"""Stored configurations as text that is made to hurt whoever reads it."""

from collections.abc import Callable, Iterator
from typing import Any

from tests.campaign.hostile import CANARY, Payload
from tests.campaign.hostile_seal import config, config_text

TOUCH = f"touch {CANARY}"
REFUSED = ("refused",)


def yaml_payloads() -> Iterator[Payload]:
    """Tags that make objects, aliases that multiply, nesting, numbers that take long to read."""
    for name, text in _ADDED.items():
        yield Payload("yaml", name, config_text(lambda raw, text=text: raw + text.encode()), expect=REFUSED)
    for name, text in _WHOLE.items():
        yield Payload("yaml", name, config_text(lambda raw, text=text: text), expect=REFUSED)
    for name, change in _INTERPOLATIONS.items():
        yield Payload("interpolation", name, config(change), expect=REFUSED)


_ADDED = {
    "python/object/apply": f"\nevil: !!python/object/apply:os.system ['{TOUCH}']\n",
    "python/object/new": f"\nevil: !!python/object/new:os.system ['{TOUCH}']\n",
    "python/object": "\nevil: !!python/object:subprocess.Popen {}\n",
    "python/name": "\nevil: !!python/name:os.system\n",
    "python/module": "\nevil: !!python/module:antigravity\n",
    "python/tuple": "\nevil: !!python/tuple [1]\n",
    "a tag with its whole name": f"\nevil: !<tag:yaml.org,2002:python/object/apply:os.system> ['{TOUCH}']\n",
    "a tag of somebody's": "\nevil: !os.system [1]\n",
    "binary": "\nevil: !!binary gASV\n",
    "a date": "\nevil: 2001-01-01\n",
    "a moment": "\nevil: 2001-01-01T00:00:00Z\n",
    "a set": "\nevil: !!set {a, b}\n",
    "an ordered mapping": "\nevil: !!omap [a: 1]\n",
    "aliases that multiply": "\n"
    + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}' if n else 'lol'] * 9)}]\n" for n in range(9)),
    "an alias of itself": "\nevil: &e [*e]\n",
    "a merge": "\nevil: &e {a: 1}\nother: {<<: *e}\n",
    "a merge of itself": "\nevil: &e {<<: *e}\n",
    "a merge without an alias": "\n<<: {hooks: {evil: {_target_: os.system}}}\n",
    "a merge of a number": "\n<<: 7\n",
    "the same key twice": "\nseed: 1\nseed: 2\n",
    "a key that is a list": "\n? [a, b]\n: 1\n",
    "a key that is a mapping": "\n? {a: b}\n: 1\n",
    "a key that is null": "\nenv2: {~: 1}\n",
    "a key that is an escape sequence": '\n"\\e]0;title\\a": 1\n',
    "a key of 100 kB": f"\n{'x' * 100_000}: 1\n",
    "sixties": "\nevil: " + "1:" * 40_000 + "1\n",
    "an integer of 100,000 digits": "\nevil: " + "9" * 100_000 + "\n",
    "a hexadecimal integer": "\nevil: 0x" + "f" * 100_000 + "\n",
    "a binary integer": "\nevil: 0b" + "1" * 100_000 + "\n",
    "a float out of range": "\nevil: 1.0e+999\n",
    "brackets": "\nevil: " + "[" * 50_000 + "\n",
    "brackets that close": "\nevil: " + "[" * 20_000 + "]" * 20_000 + "\n",
    "braces": "\nevil: " + "{a: " * 20_000 + "\n",
    "indentation": "\n" + "".join(f"{' ' * n}a{n}:\n" for n in range(400)),
    "dashes": "\nevil:\n" + "- " * 20_000 + "1\n",
    "question marks": "\n" + "? " * 20_000 + "1\n",
    "a second document": "\n---\nseed: 1\n",
    "a directive": "\n%YAML 9.9\n---\nseed: 1\n",
    "a lone surrogate": '\nevil: "\\ud800"\n',
    "a NUL": '\nevil: "a\\0b"\n',
    "tabs": "\n\tevil: 1\n",
    "an unknown root key": "\nevil: 1\n",
}
_WHOLE: dict[str, bytes] = {
    "UTF-16": "seed: 0".encode("utf-16"),
    "UTF-32": "seed: 0".encode("utf-32"),
    "no text at all": bytes(range(256)),
    "nothing": b"",
    "null": b"null",
    "a list": b"[1, 2]",
    "a text": b"x" * 1000,
    "NULs": bytes(1000),
    "200 kB of comments": b"#" * 200_000,
    "200 kB of lines": b"\n" * 200_000,
    "100 kB of colons": b":" * 100_000,
    "100 kB of quotes": b'"' * 99_999,
    "100 kB of anchors": b"&a " * 33_000,
    "100 kB of tags": b"!a " * 33_000,
    "100 kB of a text": b"a: |\n" + b" x\n" * 33_000,
    "30,000 keys": b"".join(b"%d:\n" % n for n in range(18_000)),
    "JSON": b'{"seed": 0}',
    "an object in JSON": b'{"py/object": "os.system"}',
}


def _bomb(tree: dict[str, Any]) -> None:
    """Each text repeats the one before ten times."""
    tree["env"]["kwargs"] = {"x0": "x" * 10} | {f"x{n}": f"${{env.kwargs.x{n - 1}}}" * 10 for n in range(1, 12)}


def _node_bomb(tree: dict[str, Any]) -> None:
    """Each mapping holds the one before ten times."""
    tree["env"]["kwargs"] = {"x0": {"a": 1}} | {
        f"x{n}": {f"a{m}": f"${{env.kwargs.x{n - 1}}}" for m in range(10)} for n in range(1, 12)
    }


def _chain(tree: dict[str, Any]) -> None:
    tree["env"]["kwargs"] = {"x0": 1} | {f"x{n}": f"${{env.kwargs.x{n - 1}}}" for n in range(1, 2000)}


def _kwarg(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tree: tree["env"].update(kwargs={"x": value})


_INTERPOLATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{
        text[:40]: _kwarg(text)
        for text in (
            "${oc.env:HOME}",
            "${oc.env:AWS_SECRET_ACCESS_KEY,none}",
            "${oc.decode:'[1]'}",
            "${oc.create:{a: 1}}",
            "${oc.select:env}",
            "${oc.deprecated:env}",
            "${oc.dict.keys:env}",
            "${hydra:run.dir}",
            "${now:%Y}",
            "${eval:1}",
            "${python_version:major}",
            "${${a}:b}",
            "${f:${a}}",
            "x${oc.env:HOME}y",
            "${oc.env:${env.id}}",
            "${x:",
            "${",
            "$${",
            "\\${oc.env:HOME}",
            "\\\\${oc.env:HOME}",
            "${env[${seed}]}",
            "${..oc.env:HOME}",
            "${ oc.env : HOME }",
        )
    },
    "in a key": lambda tree: tree["env"].update(kwargs={"${oc.env:HOME}": 1}),
    "texts that multiply": _bomb,
    "mappings that multiply": _node_bomb,
    "a long chain": _chain,
    "a circle": _kwarg("${env.kwargs.x}"),
    "a circle of two": lambda tree: tree["env"].update(kwargs={"x": "${env.kwargs.y}", "y": "${env.kwargs.x}"}),
    "a circle through what is around it": _kwarg({"y": {"z": "${env}"}}),
    "a circle of texts": _kwarg("a${env.kwargs.x}b"),
    "30,000 of them": _kwarg("${seed}" * 14_000),
    "the root": _kwarg("${.}"),
    "nothing there": _kwarg("${nowhere.at.all}"),
    "a hundred levels up": _kwarg("${" + "." * 100 + "x}"),
    "as the target of the environment": lambda tree: tree["env"].update(_target_="${oc.env:HOME}"),
}
