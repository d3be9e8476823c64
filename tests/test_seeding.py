import json
import random

import numpy as np
import pytest
import torch

from runner.checkpoint.tree import flatten, unflatten
from runner.seeding import Streams, env_seed, stream_seed


def test_a_stream_is_a_pure_function_of_seed_and_name():
    # printf "(7, 'init')" | sha256sum | cut -c 1-16 gives b8ef9809c335e3f2; little-endian, without the lowest bit
    assert stream_seed(7, "init") == 0xF2E335C30998EFB8 >> 1


def test_streams_differ_by_seed_and_by_name():
    words = [(seed, name) for seed in range(50) for name in ("init", "exploration", "sampler")]
    words += [(1, "env", number, episode) for number in range(10) for episode in range(20)]
    assert len({stream_seed(*word) for word in words}) == len(words)
    assert stream_seed(1, "env", 1, 23) != stream_seed(1, "env", 12, 3)
    assert stream_seed(1, "1") != stream_seed(1, 1)


def test_numpy_integers_count_as_integers():
    assert stream_seed(np.int64(3), "env", np.int32(4)) == stream_seed(3, "env", 4)


def test_seeds_are_in_range():
    seeds = [stream_seed(seed, "x") for seed in range(500)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # all 63 bits are used
    env_seeds = [env_seed(seed, "x") for seed in range(500)]
    assert all(0 <= seed < 2**31 for seed in env_seeds)
    assert max(env_seeds) > 2**30
    assert len(set(env_seeds)) == 500


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_generators_of_one_name_agree_and_others_do_not(kind):
    def draw(seed, name):
        generator = getattr(Streams(seed), kind)(name)
        if kind == "numpy":
            return generator.random(3).tolist()
        return torch.rand(3, generator=generator).tolist()

    assert draw(0, "sampler") == draw(0, "sampler")
    assert draw(0, "sampler") != draw(0, "init")
    assert draw(0, "sampler") != draw(1, "sampler")


def test_making_a_generator_leaves_the_others_alone():
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    streams = Streams(5)
    streams.numpy("a").random(10)
    torch.rand(10, generator=streams.torch("b"))
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def draw_globals():
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]


def test_seeding_the_globals_seeds_all_three():
    streams = Streams(3)
    streams.seed_globals("init")
    first = draw_globals()
    draw_globals()
    streams.seed_globals("init")
    assert draw_globals() == first
    streams.seed_globals("exploration")
    assert not set(draw_globals()) & set(first)


def test_the_globals_go_on_where_they_were_saved():
    streams = Streams(0)
    streams.seed_globals("init")
    draw_globals()  # leaves half a pair of normal numbers cached, in Python's and in NumPy's generator
    skeleton, tensors = flatten(streams.state_dict())
    stored = json.dumps(skeleton), {name: tensor.clone() for name, tensor in tensors.items()}
    expected = [draw_globals() for _ in range(3)]
    streams.seed_globals("other")
    Streams(1).load_state_dict(unflatten(json.loads(stored[0]), stored[1]))
    assert [draw_globals() for _ in range(3)] == expected
