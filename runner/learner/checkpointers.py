"""Files with the weights of one network, for those who use it without a trainer, which saves whole runs."""

import contextlib
import os
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from runner.learner.gradients import are_finite
from runner.learner.optimization import NonFiniteError
from runner.spec import CheckpointError, StateDict

_WITHOUT_ARRAYS = {torch.bfloat16: torch.int16}
"""Types that numpy does not know, and those that hold the same bits in a file."""


class Checkpointer(ABC):
    """A checkpointer is given its network once (``init``), and told of each of its updates (``update``)."""

    @abstractmethod
    def init(self, model: nn.Module, filename: str) -> None:
        """Take the network to save, and the name that a file of it should have."""

    @abstractmethod
    def update(self) -> None:
        """One update of the network, and of its target, has happened."""

    def state_dict(self) -> StateDict:
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        if state:
            raise CheckpointError(f"{type(self).__name__} keeps no state, and cannot go on from {sorted(state)}")


class DummyCheckpointer(Checkpointer):
    """Saves nothing."""

    def init(self, model: nn.Module, filename: str) -> None:
        pass

    def update(self) -> None:
        pass


class PeriodicCheckpointer(Checkpointer):
    """Writes the weights over the same file after every ``frequency`` updates, in one step: old or new, never half.

    Args:
        folder: of the file, which is named after the approximation.
    """

    def __init__(self, frequency: int, folder: str | Path = ".") -> None:
        if frequency < 1:
            raise ValueError(f"a checkpoint after every {frequency} updates: the frequency must be >= 1")
        self.frequency, self.folder = frequency, Path(folder)
        self._updates = 0
        self._written: tuple[int, int] | None = None

    def init(self, model: nn.Module, filename: str) -> None:
        self.model, self.path = model, self.folder / filename

    def update(self) -> None:
        self._updates += 1
        if self._updates % self.frequency == 0:
            if self._written is not None and _identity(self.path) not in (None, self._written):
                raise CheckpointError(f"{self.path} was written by another one: give each approximation its own name")
            save_weights(self.model, self.path)
            self._written = _identity(self.path)

    def load(self) -> None:
        """Set the weights to those of the file."""
        load_weights(self.model, self.path)

    def state_dict(self) -> StateDict:
        return {"updates": self._updates}

    def load_state_dict(self, state: StateDict) -> None:
        self._updates = state["updates"]


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write parameters and buffers to ``path`` as numpy's ``.npz``, whose checksums find damage; nothing is pickled.

    Raises:
        NonFiniteError: where a parameter is no number; the file stays as it was.
        CheckpointError: where the file system fails, or the state has a part that is no tensor.
    """
    parameters = [parameter.detach() for parameter in model.parameters()]
    if parameters and not are_finite(parameters):
        raise NonFiniteError(f"the weights for {path} are no longer finite, and were not written")
    arrays = {key: _as_array(key, value) for key, value in model.state_dict().items()}
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary, arrays)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Set parameters and buffers to what :func:`save_weights` has written of such a model.

    Raises:
        CheckpointError: where the file is missing, damaged or of another model, which stays as it was.
    """
    own = model.state_dict()
    try:
        found = _read(Path(path))
    except Exception as error:  # whatever a damaged file may raise
        raise CheckpointError(f"{path} cannot be read: {str(error) or type(error).__name__}".splitlines()[0]) from error
    if differing := sorted(own.keys() ^ found.keys()):
        where = "the file" if differing[0] in own else "the model"
        raise CheckpointError(f"{path} is of another model: there is no {differing[0]} in {where}")
    model.load_state_dict({key: _as_tensor(f"{path}: {key}", found[key], value) for key, value in own.items()})


def _as_array(key: str, value: Tensor) -> np.ndarray:
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{key} is {type(value).__name__}, and only tensors can be written")
    tensor = value.detach().cpu().contiguous()
    return tensor.view(_WITHOUT_ARRAYS.get(tensor.dtype, tensor.dtype)).numpy()


def _as_tensor(what: str, array: np.ndarray, like: Tensor) -> Tensor:
    tensor = torch.from_numpy(array)
    expected = _WITHOUT_ARRAYS.get(like.dtype, like.dtype)
    if (tensor.dtype, tensor.shape) != (expected, like.shape):
        words = f"is {tensor.dtype} {list(tensor.shape)}, and the model has {expected} {list(like.shape)}"
        raise CheckpointError(f"{what} {words}")
    return tensor.view(like.dtype)


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename:.80} is compressed, and may unpack to any size")
            with archive.open(info) as entry:
                arrays[info.filename.removesuffix(".npy")] = np.lib.format.read_array(entry, allow_pickle=False)
    return arrays


def _identity(path: Path) -> tuple[int, int] | None:
    """Tells a file from one that took its place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _sync(folder: Path) -> None:
    """Push a folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
