import pytest
import torch
from tensordict import TensorDict

from runner.learner.connectors import EpisodesToBatch, pad_sequences


def episode(*values):
    return TensorDict({"x": torch.tensor(values)}, [len(values)])


def test_episodes_become_one_row_of_steps_that_says_where_each_begins():
    batch = EpisodesToBatch()([episode(1, 2), episode(3), episode(4, 5, 6)])
    assert batch["x"].tolist() == [1, 2, 3, 4, 5, 6]
    assert batch["is_init"].tolist() == [True, False, True, True, False, False]


def test_sequences_are_filled_up_to_the_longest_and_say_what_counts():
    batch = EpisodesToBatch(pad_sequences)([episode(1, 2), episode(3, 4, 5)])
    assert batch["x"].tolist() == [[1, 2, 0], [3, 4, 5]]
    assert batch["collector", "mask"].tolist() == [[True, True, False], [True, True, True]]
    assert batch["is_init"].tolist() == [[True, False, False], [True, False, False]]


def test_connectors_of_ones_own_come_after_it_in_their_order():
    def doubled(episodes, batch):
        return batch.set("x", batch["x"] * 2)

    def plus_episodes(episodes, batch):
        return batch.set("x", batch["x"] + len(episodes))

    pipeline = EpisodesToBatch(more=[doubled])
    pipeline.append(plus_episodes)
    assert pipeline([episode(1), episode(5)])["x"].tolist() == [4, 12]
    pipeline.prepend(plus_episodes)
    assert pipeline([episode(1), episode(5)])["x"].tolist() == [8, 16]


def test_the_episodes_stay_as_they_are():
    one = episode(1, 2)
    EpisodesToBatch()([one])
    EpisodesToBatch(pad_sequences)([one, episode(1, 2, 3)])
    assert one.keys() == {"x"}


def test_a_connector_that_returns_nothing_and_no_episodes_at_all_are_refused():
    def forgetful(episodes, batch):
        batch["y"] = batch["x"]

    with pytest.raises(TypeError, match="forgetful has to return a TensorDict; it returned NoneType"):
        EpisodesToBatch(more=[forgetful])([episode(1)])
    with pytest.raises(ValueError, match="no episodes"):
        EpisodesToBatch()([])
