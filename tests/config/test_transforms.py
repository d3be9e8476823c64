"""Wrappers by name in the configuration: checked, changed and taken out from the shell, and read back from a run."""

import pickle

import pytest
from gymnasium import wrappers as theirs

from runner.config.arguments import parse_arguments
from runner.config.build import Builder
from runner.config.check import check
from runner.config.schema import Schema
from runner.config.targets import WRAPPERS, is_allowed, is_nameable, resolve_target
from runner.envs.gym import REFUSED
from runner.seeding import Streams

PIXELS = "env=pixel_cartpole"


def built(*typed):
    config = check(parse_arguments([*typed, "tuned=null"])).config
    return Builder(streams=Streams(0)).build(config["env"])


def chain(env):
    names = []
    while hasattr(env, "env"):
        names.append(type(env).__name__)
        env = env.env
    return names


def test_a_wrapper_is_changed_taken_out_and_added_by_its_name():
    assert built(PIXELS).spec.observation_shape == (3, 36, 60)
    assert built(PIXELS, "env.transforms.frame_stack.stack_size=2").spec.observation_shape == (2, 36, 60)
    assert built(PIXELS, "~env.transforms.grayscale").spec.observation_shape == (3, 36, 60, 3)
    assert built(PIXELS, "env.transforms.frame_stack=null").spec.observation_shape == (36, 60)
    clip = "+env.transforms.clip={_target_: gymnasium.wrappers.ClipReward, max_reward: 0.5}"
    assert chain(built(PIXELS, clip).envs[0])[0] == "ClipReward"
    scaled = "+env.transforms.scaled={_target_: runner.envs.transforms.ScaleReward, scale: 0.1}"
    assert chain(built("env=cartpole", scaled).envs[0])[0] == "ScaleReward"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("env.transforms.resize.shape=[40]", "expected a list of 2: [a whole number, a whole number]"),
        ("env.transforms.frame_stack.stack_size=four", "expected a whole number"),
        ("+env.transforms.frame_stack.stack=4", "did you mean env.transforms.frame_stack.stack_size?"),
        ("+env.transforms.resize.env=4", "there is no such parameter"),
        ("~env.transforms.resize.shape", "env.transforms.resize.shape"),
        ("+env.transforms.x={_target_: gymnasium.wrappers.ResizeObservatio}", "did you mean ResizeObservation?"),
        ("+env.transforms.x={_target_: runner.envs.transforms.NoopReset, noops: -1}", "expected a whole number >= 0"),
        ("env.transforms.crop.height=0", "expected a whole number > 0"),
    ],
)
def test_a_wrapper_is_checked_by_its_signature_before_anything_starts(ask, typed, words):
    answer = ask(PIXELS, typed)
    assert answer.code == 2
    assert len(answer.mistakes) == 1
    assert words in answer.mistakes[0]
    assert "Traceback" not in answer.err


def test_what_a_wrapper_refuses_is_one_line_and_a_mistake_in_the_configuration(ask):
    answer = ask("env.id=CartPole-v1", "+env.transforms.small={_target_: gymnasium.wrappers.GrayscaleObservation}")
    assert answer.code == 2
    assert "env.transforms.small: " in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("typed", ["env.make.vecnorm=true", "env.make.from_pixels=true"])
def test_so_is_what_a_builder_refuses(ask, typed):
    answer = ask("env=transformed", typed)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert typed.split(".")[2].partition("=")[0] in answer.err


def test_wrappers_can_be_sent_to_other_processes():
    config = check(parse_arguments([PIXELS, "tuned=null"])).config
    environment = Builder(streams=Streams(0)).build(config["env"])
    again = pickle.loads(pickle.dumps(environment.make))()
    assert chain(again) == chain(environment.envs[0])


def test_a_hint_says_where_the_first_argument_comes_from():
    schema = Schema(_Origins(), [])
    node = {"_target_": "gymnasium.wrappers.ClipAction"}
    schema.node("a", {"_target_": "runner.envs.vector.make_environment", "id": "X", "transforms": {"b": node}})
    assert schema.problems == []
    schema.node("a", {"_target_": "runner.envs.vector.make_environment", "id": "X", "make": node})
    assert [problem.key for problem in schema.problems] == ["a.make.env"]


class _Origins:
    def of(self, key):
        return "here"


@pytest.mark.parametrize("target", sorted(WRAPPERS))
def test_harmless_wrappers_are_read_back_from_a_run(target):
    assert is_nameable(target, [])
    assert is_allowed(resolve_target(target), [])
    assert target.rpartition(".")[2] not in REFUSED


@pytest.mark.parametrize("name", ["RecordVideo", "TransformObservation", "TransformReward", "HumanRendering"])
def test_wrappers_that_write_files_or_take_functions_are_not(name):
    assert not is_nameable(f"gymnasium.wrappers.{name}", [])
    assert not is_allowed(getattr(theirs, name), [])


def test_pictures_by_a_transform_that_was_typed_are_learnt_from():
    typed = "+env.transforms.pixels={_target_: runner.envs.transforms.PixelRenderTransform}"
    small = "+env.transforms.small={_target_: gymnasium.wrappers.ResizeObservation, shape: [20, 30]}"
    environment = built(
        "env=gym", "env.id=CartPole-v1", "+env.kwargs.render_mode=rgb_array", typed, small, "network=q_cnn"
    )
    assert environment.spec.observation_shape == (20, 30, 3)
    assert environment.resume_mode == "tape"
    environment.close()
