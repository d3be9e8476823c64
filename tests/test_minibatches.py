import random
from math import ceil

import pytest
import torch
from tensordict import TensorDict

from runner.data.rollout import Rollout
from runner.minibatches import Cycle, cyclic_minibatches, new_order

CASES = 200


@pytest.fixture
def draw():
    return random.Random(7).randint


def rows(number):
    return TensorDict({"row": torch.arange(number)}, [number])


def taken(batches, *arguments, **options):
    return [
        {module_id: part["row"].tolist() for module_id, part in minibatch.items()}
        for minibatch in cyclic_minibatches(batches, *arguments, **options)
    ]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def written_definition(sizes, epochs, size):
    """Row by row: each module counts up and begins anew at its end, until the last has begun ``epochs`` times anew."""
    at, seen, minibatches = dict.fromkeys(sizes, 0), dict.fromkeys(sizes, 0), []
    while min(seen.values()) < epochs:
        minibatch = {module_id: [] for module_id in sizes}
        for module_id, number in sizes.items():
            for _ in range(size):
                minibatch[module_id].append(at[module_id])
                at[module_id] += 1
                if at[module_id] == number:
                    at[module_id], seen[module_id] = 0, seen[module_id] + 1
        minibatches.append(minibatch)
    return minibatches


def test_rows_are_taken_as_the_written_definition_says(draw):
    for _ in range(CASES):
        sizes = {module_id: draw(1, 12) for module_id in "abc"[: draw(1, 3)]}
        epochs, size = draw(1, 4), draw(1, 15)
        batches = {module_id: rows(number) for module_id, number in sizes.items()}
        assert taken(batches, epochs, size) == written_definition(sizes, epochs, size)


def test_there_are_as_many_minibatches_as_full_ones_cover_all_epochs(draw):
    for _ in range(CASES):
        number, epochs, size = draw(1, 30), draw(1, 5), draw(1, 35)
        minibatches = taken({"a": rows(number)}, epochs, size, {"a": generator()})
        assert len(minibatches) == ceil(epochs * number / size)
        assert {len(one["a"]) for one in minibatches} == {size}


@pytest.mark.parametrize(("number", "size", "epochs", "expected"), [(10, 3, 2, 7), (7, 2, 3, 11)])
def test_examples_worked_out_by_hand(number, size, epochs, expected):
    assert len(taken({"a": rows(number)}, epochs, size)) == expected


def test_a_shuffled_minibatch_has_no_row_twice_unless_it_is_larger_than_all_rows(draw):
    for seed in range(CASES):
        number, size = draw(1, 20), draw(1, 20)
        cycle = Cycle(number, size, generator(seed))
        for _ in range(12):
            assert len(set(cycle.take().tolist())) == min(number, size)


def test_each_shuffled_epoch_has_every_row_once(draw):
    for seed in range(CASES):
        number, size = draw(1, 12), draw(1, 12)
        cycle = Cycle(number, size, generator(seed))
        stream = torch.cat([cycle.take() for _ in range(4 * number)]).tolist()
        for first in range(0, len(stream) - number + 1, number):
            assert sorted(stream[first : first + number]) == list(range(number))


def test_one_epoch_is_shuffled_too_and_every_epoch_in_another_way():
    orders = [one["a"] for one in taken({"a": rows(50)}, 3, 50, {"a": generator()})]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in [*orders, list(range(50))]}) == 4


def test_without_a_generator_rows_stay_in_their_order():
    assert taken({"a": rows(4)}, 1, 2) == [{"a": [0, 1]}, {"a": [2, 3]}]


def test_the_module_with_the_most_rows_ends_it():
    minibatches = taken({"long": rows(6), "short": rows(2)}, 1, 2)
    assert [one["long"] for one in minibatches] == [[0, 1], [2, 3], [4, 5]]
    assert [one["short"] for one in minibatches] == [[0, 1], [0, 1], [0, 1]]


def test_a_fixed_number_of_minibatches_overrides_the_epochs():
    assert len(taken({"a": rows(10)}, 5, 3, num_total_minibatches=2)) == 2
    assert len(taken({"a": rows(2)}, 1, 2, num_total_minibatches=7)) == 7
    assert len(taken({"a": rows(2)}, 1, None, num_total_minibatches=7)) == 7


def test_without_a_size_each_epoch_is_the_whole_batch():
    assert taken({"a": rows(3), "b": rows(5)}, 2, None) == [{"a": [0, 1, 2], "b": [0, 1, 2, 3, 4]}] * 2


def test_sequences_stay_whole():
    batch = TensorDict({"row": torch.arange(12).reshape(4, 3)}, [4, 3])
    minibatches = taken({"a": batch}, 1, 2, {"a": generator()})
    assert len(minibatches) == 2
    for minibatch in minibatches:
        assert all(row == [row[0], row[0] + 1, row[0] + 2] and row[0] % 3 == 0 for row in minibatch["a"])


@pytest.mark.parametrize("empty", [rows(0), TensorDict({}, [])])
def test_a_batch_without_rows_is_refused(empty):
    with pytest.raises(ValueError, match="module 'b' has no rows"):
        taken({"a": rows(3), "b": empty}, 1, 2)


def test_what_is_written_into_a_minibatch_is_not_in_the_batch():
    batch = rows(4)
    for size in (2, 4, None):
        for minibatch in cyclic_minibatches({"a": batch}, 1, size):
            minibatch["a"]["more"] = torch.zeros(minibatch["a"].batch_size)
            minibatch["a"]["row"].zero_() if size else None
    assert batch.keys() == {"row"}
    assert batch["row"].tolist() == [0, 1, 2, 3]


def test_the_rollout_source_takes_the_same_minibatches():
    batch = TensorDict({"row": torch.arange(12).reshape(1, 12)}, [1, 12])
    source = Rollout(generator(3), epochs=3, batch_size=4)
    source.extend(batch)
    drawn = [source.sample()["row"].tolist() for _ in range(source.optim_steps())]
    assert drawn == [one["a"] for one in taken({"a": rows(12)}, 3, 4, {"a": generator(3)})]


def test_late_rows_come_last():
    order = new_order(6, generator(), torch.tensor([1, 4])).tolist()
    assert sorted(order) == list(range(6))
    assert set(order[4:]) == {1, 4}
