"""Processes that train together and save together, each a fork of the test's own."""

import logging
import os
import sys

import numpy as np
import torch
from torch import distributed, nn

from runner.checkpoint.distributed import DistributedCheckpoint
from runner.spec import HooklineError
from runner.trainer import Trainer

ROUNDS, EVERY = 20, 5


class Learning:
    """A network and its optimizer, the same in every process: gradients are averaged over all."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = nn.Linear(3, 1)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.01)

    def learn(self, batch):
        self.optimizer.zero_grad()
        self.network(batch).square().mean().backward()
        for parameter in self.network.parameters():
            distributed.all_reduce(parameter.grad)
        self.optimizer.step()

    def state_dict(self):
        return {"network": dict(self.network.state_dict()), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


class Own:
    """What each process has for itself: a generator, the rows it has drawn, and an array that numpy knows."""

    def __init__(self, rank):
        self.generator = torch.Generator().manual_seed(rank)
        self.rows = torch.zeros(ROUNDS, 3)
        self.sums = np.zeros(2)

    def draw(self, number):
        self.rows[number] = torch.randn(3, generator=self.generator)
        self.sums += float(self.rows[number].sum())
        return self.rows[: number + 1]

    def state_dict(self):
        return {"generator": self.generator.get_state(), "rows": self.rows, "sums": self.sums}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])
        self.rows.copy_(state["rows"])
        self.sums[:] = state["sums"]


def make(folder, rank, backend, store=DistributedCheckpoint):
    """A trainer that only saves and loads, and the two parts it saves."""
    checkpoint = store(folder, {"env_steps": EVERY}, backend=backend)
    trainer, learning, own = Trainer(checkpoint=checkpoint), Learning(), Own(rank)
    trainer.register_module("learner", learning)
    trainer.register_module("own", own)
    return trainer, learning, own


def work(folder, rank, backend, resume, store):
    """Train to the end; what must be the same bits goes to ``<folder>/end-<rank>.pt``."""
    trainer, learning, own = make(folder, rank, backend, store)
    if resume:
        trainer.load_from_file()
    while trainer.progress.env_steps < ROUNDS:
        learning.learn(own.draw(trainer.progress.env_steps))
        trainer.progress.env_steps += 1
        trainer.save_trainer()
    state = trainer.state_dict()
    state["progress"].pop("seconds")
    state["metrics"] = {}
    torch.save({name: state[name] for name in ("learner", "own", "progress", "checkpoint")}, folder / f"end-{rank}.pt")


def start(folder, world_size, backend, resume=False, store=DistributedCheckpoint):
    """Fork ``world_size`` processes that find one another by a file; returns their ids."""
    rendezvous = folder / f"rendezvous-{os.urandom(4).hex()}"
    pids = []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                sys.stderr = open(folder / f"told-{rank}", "w")  # noqa: SIM115 (the process ends with it)
                logging.basicConfig(stream=sys.stderr, format="%(message)s", force=True)
                distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world_size)
                work(folder, rank, backend, resume, store)
                distributed.destroy_process_group()
                code = 0
            except HooklineError as error:
                print(error, file=sys.stderr, flush=True)
                code = error.exit_code
            finally:
                os._exit(code)
        pids.append(pid)
    return pids


def codes(pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def told(folder, rank):
    return (folder / f"told-{rank}").read_text()


def ends(folder, world_size=2):
    return [torch.load(folder / f"end-{rank}.pt", weights_only=False) for rank in range(world_size)]
