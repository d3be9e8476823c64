"""R1: killed at any instant, as often as you like, a run that is resumed until it is done is the same run."""

import itertools
import os
import random
import time

import pytest
import torch

from tests.campaign.kill_chains import STORAGES, Chain, Kind, begin, end, play, table
from tests.whole.runs import differences

BACKENDS = ("torchsnapshot", "torch")
SEEDS = (0, 1, 2)
RANDOM_SEED = int(os.environ.get("HOOKLINE_CAMPAIGN_SEED", random.SystemRandom().randrange(10**6)))
FRESH = 0.12
"""At least so many of the kills hit processes that had to import everything."""


class Campaign:
    """Chains of all kinds in turn, until there were enough kills."""

    def __init__(self, folder):
        self.folder = folder
        self.chains = []
        self._ends, self._seconds = {}, {}

    def run(self, kinds, kills, per_chain, fresh_share=0.0):
        for kind in itertools.cycle(kinds):
            left = kills - self.count()
            if left <= 0:
                return
            is_fresh = self.count(fresh=True) < fresh_share * (self.count() + 1)
            self.play(Chain(kind, is_fresh, RANDOM_SEED + len(self.chains)), min(left, per_chain))

    def count(self, fresh=False):
        return sum(len(chain.kills) for chain in self.chains if chain.is_fresh or not fresh)

    def play(self, chain, kills):
        end, seconds = self.uninterrupted(chain.kind, chain.is_fresh)
        play(chain, self.folder / f"chain-{len(self.chains)}", kills, seconds, end)
        self.chains.append(chain)

    def uninterrupted(self, kind, is_fresh):
        """How a run of this kind ends that nobody kills, whatever its backend, and how long it takes."""
        key = kind.storage, kind.seed
        if key not in self._ends or (kind.backend, is_fresh) not in self._seconds:
            chain = Chain(kind, is_fresh, 0)
            folder = self.folder / "-".join(map(str, (*kind, "fresh" if is_fresh else "forked")))
            started = time.monotonic()
            child = begin(chain, folder)
            assert child.wait() == 0, child.output()
            self._seconds[kind.backend, is_fresh] = time.monotonic() - started
            found = end(chain, folder)
            assert differences(found, self._ends.setdefault(key, found)) == []
        return self._ends[key], self._seconds[kind.backend, is_fresh]

    def assert_nothing_was_lost(self):
        print(f"\n{table(self.chains)}")
        broken = [str(chain) for chain in self.chains if chain.problems]
        assert not broken, f"HOOKLINE_CAMPAIGN_SEED={RANDOM_SEED}, folders in {self.folder}:\n" + "\n".join(broken)


def survive(folder, kinds, kills, per_chain):
    campaign = Campaign(folder)
    campaign.run(kinds, kills=kills, per_chain=per_chain)
    campaign.assert_nothing_was_lost()


def test_twelve_kills_change_nothing(tmp_path):
    campaign = Campaign(tmp_path)
    kinds = [Kind(backend, storage, 0, frames=900) for backend in BACKENDS for storage in STORAGES]
    campaign.run(kinds[::3], kills=11, per_chain=4)
    fresh = Chain(kinds[0], is_fresh=True, random_seed=RANDOM_SEED)
    end, seconds = campaign.uninterrupted(kinds[0], is_fresh=False)
    play(fresh, tmp_path / "fresh", 1, seconds + 2, end)
    campaign.chains.append(fresh)
    campaign.assert_nothing_was_lost()
    assert sum(chain.in_a_save for chain in campaign.chains) >= 2


@pytest.mark.slow
def test_two_hundred_kills_change_nothing(tmp_path):
    campaign = Campaign(tmp_path)
    kinds = [Kind(*kind) for kind in itertools.product(BACKENDS, STORAGES, SEEDS)]
    campaign.run(kinds, kills=200, per_chain=6, fresh_share=FRESH)
    campaign.assert_nothing_was_lost()
    assert campaign.count(fresh=True) >= 20
    assert sum(chain.in_a_save for chain in campaign.chains) >= 60


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() == 0, reason="there is no GPU")
def test_twenty_kills_on_a_gpu_change_nothing(tmp_path):
    campaign = Campaign(tmp_path)
    campaign.run([Kind(backend, "tensor", 0, device="cuda") for backend in BACKENDS], kills=20, per_chain=5)
    campaign.assert_nothing_was_lost()
