"""A run's checkpoints: a kill at any instant leaves the last good one, and one with anything amiss is never read."""

import errno
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from runner.checkpoint.backends import choose_backend
from runner.checkpoint.background import Background
from runner.checkpoint.best import Best, BestCheckpoint
from runner.checkpoint.content import Content, Copies, read, take, versions, write
from runner.checkpoint.durable import make_folder, sync, sync_tree
from runner.checkpoint.manifest import MANIFEST, DamagedError, describe, read_manifest, verify, write_manifest
from runner.checkpoint.names import NAME, TEMPORARY, Age, age_of, is_alive, remove
from runner.hook import Interval
from runner.spec import CheckpointError, Deferred, Progress, StateDict, place_of
from runner.text import legible
from runner.types import Every, NonNegativeInt, PositiveInt

logger = logging.getLogger(__name__)

MAX_COPIED_BYTES = 2**30
"""A larger state is not copied, for which there may be no memory: the run waits until it is written."""
LEAST_SPACE = 2**20
"""A disk with fewer bytes left is full."""


class CheckpointStore:
    """Saves and loads the checkpoints ``ckpt/step-<env_steps>`` of a run, by updates where nothing is played.

    Args:
        run: the run's folder, or anything with such a ``path``; a folder even where its name ends in ``.pt``.
        every: how often a checkpoint is due; ``None``: only when asked for.
        keep: how many verified checkpoints stay when older ones are deleted.
        backend: how tensors are stored; ``None``: as ``CKPT_BACKEND`` says, else torchsnapshot. Reading takes either.
        keep_best: how many stay besides: those with the best values of ``best_metric``, each saved when it was logged.
        best_metric, best_mode: what is compared, and whether ``max`` or ``min`` is best.
    """

    world_size = 1
    """Of how many processes a checkpoint holds the state."""

    def __init__(
        self,
        run: Any,
        every: Every | None = None,
        keep: PositiveInt = 2,
        backend: Literal["torchsnapshot", "torch"] | None = None,
        keep_best: NonNegativeInt = 0,
        best_metric: str = "eval/return_mean",
        best_mode: Literal["max", "min"] = "max",
    ) -> None:
        self.folder = Path(getattr(run, "path", run)) / "ckpt"
        self.keep = keep
        self.backend = choose_backend(backend)
        self.best = Best(keep_best, best_metric, best_mode)
        self.rejected: list[str] = []
        self.saved_env_steps: int | None = None
        self._git = getattr(run, "git_sha", None)
        self._interval = Interval({**every}) if every else None
        self._verified: set[str] = set()
        self._refused: set[str] = set()
        self._ages: dict[str, Age] = {}
        self._sequence = 0
        self._copies = Copies()
        self._background: Background[Path] = Background()

    def due(self, progress: Progress, latest: Mapping[str, Any] | None = None) -> bool:
        """Whether the interval came round since this was last asked, or ``latest`` metrics have a new best value."""
        is_due = self._interval is not None and self._interval.fires(progress)
        if not self.best.notes(latest or {}, progress.place):
            return is_due
        self.finish()
        return self.best.is_among(self._manifests()) or is_due

    def find_best(self) -> BestCheckpoint | None:
        """The checkpoint of the best evaluated weights, if there is one."""
        self.finish()
        return next(iter(self.best.rank(self._manifests())), None)

    def _manifests(self) -> list[tuple[Path, dict[str, Any]]]:
        """Those that can be read, from the oldest on."""
        found = []
        for age, folder in reversed(self._by_age(self._ages)):
            with suppress(DamagedError, OSError):
                found += [(folder, read_manifest(folder))] if not age.is_unreadable else []
        return found

    def state_dict(self) -> StateDict:
        interval = {} if self._interval is None else {"unit": self._interval.unit, **self._interval.state_dict()}
        return {**interval, **self.best.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self.best.load_state_dict(state)
        if self._interval is not None and state.get("unit") == self._interval.unit:
            self._interval.load_state_dict(state)

    def folders(self) -> list[Path]:
        """The checkpoints there are, good or not, newest first; those with an unreadable manifest before all others."""
        return [folder for _, folder in self._by_age()]

    def _by_age(self, known: Mapping[str, "Age"] | None = None) -> list[tuple["Age", Path]]:
        found = (self.folder / name for name in self._names() if NAME.fullmatch(name))
        return sorted((((known or {}).get(folder.name) or age_of(folder), folder) for folder in found), reverse=True)

    def _names(self) -> list[str]:
        """What is in the folder of the checkpoints; only one that was never made is the same as an empty one."""
        try:
            return os.listdir(self.folder)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not os.path.lexists(self.folder):
                return []
            with suppress(OSError):  # it was made just now, by the thread that saves
                return os.listdir(self.folder)
            raise CheckpointError(f"the checkpoints in {self.folder} cannot be read: {error.strerror}") from error

    def save(
        self, state: Mapping[str, Any], counters: Mapping[str, Any], extra: Mapping[str, Any] | None = None
    ) -> Path:
        """Write ``state`` (component name -> nested state) and return its folder, once it is safely on disk.

        Raises:
            TypeError: for a part that cannot be saved, naming its path.
            CheckpointError: where the file system fails; checkpoints written before stay as they are.
        """
        self.finish()
        return self._write(self._take(state, counters, extra))

    def save_in_background(
        self, state: Mapping[str, Any], counters: Mapping[str, Any], extra: Mapping[str, Any] | None = None
    ) -> None:
        """Copy ``state`` and return, while a thread writes the copy; waits first for the save before, if need be.

        A save that fails is warned about when it does; ``wait`` raises the same. Checkpoints written before stay.
        """
        self.finish()
        content = self._take(state, counters, extra)
        is_copied = content.nbytes <= MAX_COPIED_BYTES
        copy = self._copies.copy(content) if is_copied else content
        self._background.start(lambda: self._warning(lambda: self._write(copy)))
        if not is_copied:
            self.finish()

    def finish(self) -> None:
        """Wait until no save is under way; how the last one went, ``wait`` tells."""
        self._background.finish()

    def wait(self) -> Path | None:
        """Wait until no save is under way; returns the folder of the last one made in the background.

        Raises:
            CheckpointError: where that one failed.
        """
        return self._background.result()

    def load(
        self,
        into: Mapping[str, Tensor] | None = None,
        accept: Callable[[dict[str, Any]], Any] = lambda state: None,
        take: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state and the manifest of the newest checkpoint in which nothing is amiss, bit for bit as it was saved.

        Newer ones that were passed over are warned about, and listed in ``rejected``.

        Args:
            into: tensors by name (``component/key/...``) that are overwritten in place instead of new ones being made.
            accept: called with a state found good; where it raises ``CheckpointError`` that checkpoint is passed over.
            take: the name of the only one to be looked at, for example ``step-1000``.
        """
        self.finish()
        self.rejected = [
            f"{self.folder / legible(name)} is not used: a checkpoint is called step-<env steps>"
            for name in sorted(self._names())
            if not NAME.fullmatch(name) and not TEMPORARY.fullmatch(name)
        ]
        for line in self.rejected:
            logger.warning("%s", line)
        for age, folder in [one for one in self._by_age() if take in (None, one[1].name)]:
            try:
                state, manifest = self._load_one(age, folder, into or {}, accept)
            except (DamagedError, CheckpointError) as damage:
                self._refused.add(folder.name)
                self.rejected.append(f"checkpoint {folder} is not used: {damage}")
                logger.warning(self.rejected[-1])
                continue
            self._verified.add(folder.name)
            self._refused.discard(folder.name)
            self.saved_env_steps = place_of(manifest["counters"])
            self._sequence = max(self._sequence, age.sequence)
            self.best.goes_on_from(manifest, max(other.sequence for other, _ in self._by_age()))
            _warn_of_differences(folder, manifest)
            return state, manifest
        tried = "; ".join(self.rejected) or "there is none"
        raise CheckpointError(f"no usable checkpoint in {self.folder}: {tried}")

    def _load_one(
        self, age: Age, folder: Path, into: Mapping[str, Tensor], accept: Callable[[dict[str, Any]], Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        manifest = verify(folder)
        if age.is_unreadable:  # then it is here out of turn, and may be the oldest
            raise DamagedError(MANIFEST, "could not be read at first")
        found = manifest.get("world_size", 1)
        if found != self.world_size:
            raise DamagedError(MANIFEST, f"it was made by {found!r:.20} processes, and here are {self.world_size}")
        state = self._read(folder, manifest, into)
        accept(state)
        return state, manifest

    def _read(self, folder: Path, manifest: dict[str, Any], into: Mapping[str, Tensor]) -> dict[str, Any]:
        return read(folder, manifest, into)

    def remove_stale(self) -> None:
        """Remove what killed processes left half-written; this process has nothing under way when it calls this."""
        for name in self._names():
            match = TEMPORARY.fullmatch(name)
            if match and (int(match[1]) == os.getpid() or not is_alive(int(match[1]))):
                remove(self.folder / name)

    def _take(self, state: Mapping[str, Any], counters: Mapping[str, Any], extra: Mapping[str, Any] | None) -> Content:
        more = {**(extra or {}), **self.best.evaluated_at(place_of(counters))}
        own = {"backend": self.backend, "git": self._git, "counters": dict(counters), "extra": more}
        return take(state, own)

    def _warning(self, save: Callable[[], Path]) -> Path:
        try:
            return save()
        except CheckpointError as error:
            logger.warning("%s; the run goes on, and tries again when the next checkpoint is due", error)
            raise

    def _write(self, content: Content) -> Path:
        temporary = self.folder / self._temporary_name(content)
        try:
            self.remove_stale()
            make_folder(self.folder)
            temporary.mkdir()
            written = write(temporary, content, self.backend)
            fields = {**content.fields, "files": describe(temporary, written.digests)}
            fields["extra"] = {**fields["extra"], **self._marks_of(written.deferred)}
            folder = self._publish(temporary, fields, written.deferred)
        except Exception as error:
            raise CheckpointError(
                f"no checkpoint could be written in {self.folder}: {_reason(error, self.folder)}"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.saved_env_steps = place_of(content.fields["counters"])
        logger.info("saved %s", folder)
        return folder

    def _publish(self, temporary: Path, fields: dict[str, Any], deferred: list[Deferred]) -> Path:
        existing = self._by_age(self._ages)
        if existing and self._is_same(existing[0][1], fields):
            return existing[0][1]
        self._sequence = 1 + max([self._sequence, *(age.sequence for age, _ in existing)])
        fields["sequence"] = self._sequence
        write_manifest(temporary, fields)
        sync_tree(temporary)
        verify(temporary)
        final = self._free_name(place_of(fields["counters"]))
        os.rename(temporary, final)
        sync(self.folder)
        self._verified.add(final.name)
        self._refused.discard(final.name)
        self._ages[final.name] = age_of(final, fields["sequence"])
        unreadable_last = sorted(existing, key=lambda one: one[0].is_unreadable)
        self._prune([folder for _, folder in unreadable_last])
        self._tell_published(deferred)
        return final

    def _mark_name(self, deferred: Deferred) -> str:
        return deferred.name

    def _temporary_name(self, content: Content) -> str:
        return f"step-{place_of(content.fields['counters'])}.tmp-{os.getpid()}-{secrets.token_hex(4)}"

    def _marks_of(self, deferred: list[Deferred]) -> dict[str, dict[str, int]]:
        marks = {self._mark_name(one): one.mark for one in deferred if one.name}
        return {"marks": marks} if marks else {}

    def _tell_published(self, deferred: list[Deferred]) -> None:
        """Tell those who keep what checkpoints refer to which parts the ones that are left need."""
        manifests = [manifest for _, manifest in self._manifests()] if any(one.name for one in deferred) else []
        is_known = len(manifests) == sum(NAME.fullmatch(name) is not None for name in self._names())
        for one in deferred:
            found = [_marks(manifest).get(self._mark_name(one)) for manifest in manifests]
            marks = sorted(mark for mark in found if type(mark) is int)
            if one.name and is_known and len(marks) == len(found):
                one.published(marks)

    def _is_same(self, folder: Path, fields: dict[str, Any]) -> bool:
        """Whether ``folder`` is a good checkpoint of this step with this very content."""
        if folder.name.split(".")[0] != f"step-{place_of(fields['counters'])}":
            return False
        try:
            manifest = read_manifest(folder)
            same = all(manifest[key] == fields[key] for key in ("counters", "files", "extra"))
            return same and bool(verify(folder))
        except (DamagedError, OSError):
            return False

    def _free_name(self, step: int) -> Path:
        names = (f"step-{step}" + (f".r{number}" if number else "") for number in range(1000))
        return next(self.folder / name for name in names if not os.path.lexists(self.folder / name))

    def _prune(self, folders: list[Path]) -> None:
        """Delete the older ``folders`` that are not among the ``keep`` newest good ones, one of which was just written.

        Those of the best values stay as well.
        """
        good, best = 1, self._best_folders()
        for folder in folders:
            if good >= self.keep and folder in best:
                continue
            if good >= self.keep:
                # Renamed first, so that a kill halfway leaves no half-deleted checkpoint.
                doomed = folder.with_name(f"{folder.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
                os.rename(folder, doomed)
                remove(doomed)
            else:
                good += self._is_good(folder)

    def _best_folders(self) -> set[Path]:
        ranked = self.best.rank(self._manifests()) if self.best.keep else []
        good = (one.folder for one in ranked if self._is_good(one.folder))
        return {folder for _, folder in zip(range(self.best.keep), good, strict=False)}

    def _is_good(self, folder: Path) -> bool:
        if folder.name in self._refused:  # its files may be in order, and yet nobody could go on from it
            return False
        try:
            verify(folder, with_hashes=folder.name not in self._verified)
        except DamagedError:
            return False
        self._verified.add(folder.name)
        return True


def _warn_of_differences(folder: Path, manifest: dict[str, Any]) -> None:
    then = {"torch threads": manifest["threads"], **manifest["versions"]}
    now = {"torch threads": torch.get_num_threads(), **versions()}
    changed = [f"{name} {then[name]} -> {now[name]}" for name in then if name in now and then[name] != now[name]]
    if changed:
        logger.warning(
            "%s: the run may not go on bit for bit, as there changed %s", folder, legible(", ".join(changed))
        )


@contextmanager
def naming_state_of(part: str) -> Iterator[None]:
    """Whatever loading a state raises, that it was made up or is of another version, names the part it is of."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        words = legible(f"{type(error).__name__}: {error}")
        raise CheckpointError(f"the checkpoint's state of {part} does not fit this run: {words}") from error


def _marks(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    marks = manifest["extra"].get("marks")
    return marks if isinstance(marks, dict) else {}


def make_store(store: CheckpointStore | None, path: str | Path | None, interval_frames: int) -> CheckpointStore | None:
    """The ``store``, or one at ``path`` that is due each so many frames, if either is given."""
    if path is None:
        return store
    if store is not None:
        raise ValueError("checkpoint and save_trainer_file are two names of one place: give one of them")
    if interval_frames <= 0:
        raise ValueError(f"save_trainer_interval={interval_frames} must be > 0")
    return CheckpointStore(run=path, every={"frames": interval_frames})


def _reason(error: Exception, folder: Path) -> str:
    """Why nothing could be written; torch's own writers do not say so where a disk is full."""
    reason = " ".join(str(error).split()) or type(error).__name__
    is_full = folder.exists() and shutil.disk_usage(folder).free < LEAST_SPACE
    return f"{os.strerror(errno.ENOSPC)} ({reason})" if is_full and not isinstance(error, OSError) else reason
