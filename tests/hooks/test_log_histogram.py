"""What the hook that logs histograms hands to the loggers."""

import csv

import pytest
import torch
from tensordict import TensorDict

from hooks.log_histogram import LogHistogram
from runner.loggers.csv import CSVLogger
from runner.metrics import Metrics
from runner.spec import ConfigError
from tests.toys import trainer


def logged(folder, hook):
    one = trainer(8)  # rewards 1 2 3 4 of the first batch, 5 1 2 3 of the second
    one.metrics.loggers = (CSVLogger(run=folder),)
    hook.register(one)
    one.train()
    one.metrics.flush()
    with open(folder / "histograms.csv", newline="") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


def test_each_batch_is_counted_in_bins_at_its_step(tmp_path):
    assert logged(tmp_path, LogHistogram(["next", "reward"], bins=2)) == [
        ("4", "train/next_reward", "1.0", "2.5", "2"),
        ("4", "train/next_reward", "2.5", "4.0", "2"),
        ("8", "train/next_reward", "1.0", "3.0", "2"),
        ("8", "train/next_reward", "3.0", "5.0", "2"),
    ]


def test_name_and_interval_can_be_chosen(tmp_path):
    hook = LogHistogram(["next", "reward"], "train/earned", bins=1, every={"env_steps": 8})
    assert logged(tmp_path, hook) == [("8", "train/earned", "1.0", "5.0", "4")]


def test_what_is_not_finite_is_left_out_and_of_nothing_there_is_no_histogram():
    hook, seen = LogHistogram("a"), []
    hook.register(trainer())
    hook.metrics = Metrics()
    hook.metrics.log_histogram = lambda name, data, *_: seen.append((name, data.tolist()))
    hook(TensorDict({"a": torch.tensor([1.0, float("nan")])}, batch_size=[2]))
    hook(TensorDict({"a": torch.tensor([float("inf")])}, batch_size=[1]))
    assert seen == [("train/a", [1.0])]


def test_an_entry_that_there_is_not_is_named():
    hook = LogHistogram("nothing")
    hook.register(trainer())
    with pytest.raises(ConfigError, match="the batch has no nothing"):
        hook(TensorDict({"a": torch.ones(1)}, batch_size=[1]))
