"""Sources of recorded transitions, made from a path."""

import torch

from runner.data.minari_reader import read_minari
from runner.data.offline import OfflineSource, check_spec
from runner.dataset_builders import open_dataset
from runner.spec import EnvSpec
from runner.types import MINARI, Discount, PositiveInt


def make_offline_source(
    spec: EnvSpec,
    path: str,
    generator: torch.Generator | None = None,
    device: str = "cpu",
    batch_size: PositiveInt = 256,
    optim_steps: PositiveInt = 1,
    n_step: PositiveInt = 1,
    gamma: Discount = 0.99,
) -> OfflineSource:
    """Recorded transitions, drawn uniformly; files that may be larger than memory.

    Args:
        spec: of the environment that the data has to be of.
        path: a dataset's folder, or that of a run that has recorded one or whose checkpoint holds a replay buffer;
            ``minari:<name>`` is a dataset of Minari's on this machine, which is read into memory.
        n_step, gamma: rewards that are summed, discounted by ``gamma``, before a transition bootstraps.

    Raises:
        DatasetError: in one line, where there is no such data, or it is of another kind of environment.
    """
    dataset = read_minari(path.removeprefix(MINARI)) if path.startswith(MINARI) else open_dataset(path)
    check_spec(dataset, spec)
    return OfflineSource(
        dataset,
        generator or torch.Generator(),
        batch_size=batch_size,
        optim_steps=optim_steps,
        n_step=n_step,
        gamma=gamma,
        device=device,
    )
