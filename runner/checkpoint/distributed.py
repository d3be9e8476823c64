"""One checkpoint of several processes: each writes its part, and it counts once all of them have."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, distributed

from runner.checkpoint.content import Content, read, write
from runner.checkpoint.durable import make_folder, sync_tree
from runner.checkpoint.manifest import DamagedError, describe
from runner.checkpoint.names import Age, remove
from runner.checkpoint.store import CheckpointStore
from runner.spec import CheckpointError, Deferred, place_of
from runner.types import Every, PositiveInt

MAX_ANSWER_BYTES = 2**30


class DistributedCheckpoint(CheckpointStore):
    """A store that the processes of ``group`` use together, in one folder that all of them see.

    All of them save, load, and ask whether a save is due, at the same points of the run. What is in ``replicated`` is
    the same in every process: the first one writes it, and all read it. A checkpoint goes on with as many processes as
    made it; where one of them is killed, no checkpoint comes of the save that was under way. Replay rows in files
    (``source.storage=memmap``) need a folder of each process's own.

    Args:
        group: of ``torch.distributed``, for tensors on the CPU (gloo); all processes if not given.
        replicated: names of components.
    """

    def __init__(
        self,
        run: Any,
        every: Every | None = None,
        keep: PositiveInt = 2,
        backend: Literal["torchsnapshot", "torch"] | None = None,
        group: Any = None,
        replicated: Collection[str] = ("learner",),
    ) -> None:
        if every and "seconds" in every:
            raise ValueError("checkpoint.every.seconds: the clocks of several processes do not agree on when that is")
        super().__init__(run, every, keep, backend)
        self.group, self.replicated = group, frozenset(replicated)
        self.rank, self.world_size = distributed.get_rank(group), distributed.get_world_size(group)

    def save(
        self, state: Mapping[str, Any], counters: Mapping[str, Any], extra: Mapping[str, Any] | None = None
    ) -> Path:
        """Write this process's part; returns the folder once the parts of all are safely on disk.

        Raises:
            CheckpointError: in every process, where one could not write; checkpoints written before stay as they are.
        """
        try:
            own = {name: part for name, part in state.items() if self.rank == 0 or name not in self.replicated}
            content, reason = self._take(own, counters, extra), None
        except TypeError as error:
            content, reason = None, str(error)
        self._raise_first(self._gather(reason), "no checkpoint could be written")
        assert content is not None
        return self._write(content)

    def save_in_background(
        self, state: Mapping[str, Any], counters: Mapping[str, Any], extra: Mapping[str, Any] | None = None
    ) -> None:
        """The same without a word where it fails but a warning; it does wait, as the processes have to agree."""
        self._background.start(lambda: self._warning(lambda: self.save(state, counters, extra)))
        self._background.finish()

    def _write(self, content: Content) -> Path:
        temporary = self._begin(content)
        deferred: list[Deferred] = []
        try:
            report = self._write_part(temporary / f"rank-{self.rank}", content, deferred)
            reports = self._gather(report)
            self._raise_first([one["error"] for one in reports], "no checkpoint could be written")
            folder = self._end(temporary, content, reports)
        finally:
            if self.rank == 0:
                remove(temporary)
        self._tell_published(deferred)
        self.saved_env_steps = place_of(content.fields["counters"])
        return folder

    def _begin(self, content: Content) -> Path:
        """The folder that the parts go into, which the first process makes."""
        name, reason = self._temporary_name(content), None
        if self.rank == 0:
            try:
                self.remove_stale()
                make_folder(self.folder)
                (self.folder / name).mkdir()
            except (OSError, CheckpointError) as error:
                reason = " ".join(str(error).split())
        try:
            name, reason = self._gather([name, reason])[0]
            self._raise_first([reason], "no checkpoint could be written")
        except CheckpointError:
            if self.rank == 0:
                remove(self.folder / name)
            raise
        return self.folder / name

    def _write_part(self, folder: Path, content: Content, deferred: list[Deferred]) -> dict[str, Any]:
        """Write what is this process's own; what to tell the others of it."""
        try:
            folder.mkdir()
            written = write(folder, content, self.backend)
            deferred += written.deferred
            sync_tree(folder)
            files = {f"{folder.name}/{name}": entry for name, entry in describe(folder, written.digests).items()}
        except Exception as error:
            return {"error": " ".join(str(error).split()) or type(error).__name__}
        own = {"env_steps": place_of(content.fields["counters"]), "components": content.fields["components"]}
        return {"error": None, **own, "files": files, **self._marks_of(written.deferred)}

    def _end(self, temporary: Path, content: Content, reports: list[dict[str, Any]]) -> Path:
        """Let the checkpoint count, which is for the first process to do, and tell the others."""
        told: list[Any] = ["", None]
        if self.rank == 0:
            try:
                told[0] = self._publish(temporary, self._fields(content, reports), []).name
            except Exception as error:
                told[1] = " ".join(str(error).split()) or type(error).__name__
        name, reason = self._gather(told)[0]
        self._raise_first([reason], "no checkpoint could be written")
        return self.folder / name

    def _fields(self, content: Content, reports: list[dict[str, Any]]) -> dict[str, Any]:
        """What the one manifest says of all parts."""
        if len({one["env_steps"] for one in reports}) != 1:
            raise CheckpointError(f"the processes are at env steps {[one['env_steps'] for one in reports]}")
        files = {name: entry for one in reports for name, entry in one["files"].items()}
        marks = {name: mark for one in reports for name, mark in one.get("marks", {}).items()}
        extra = {**content.fields["extra"], **({"marks": marks} if marks else {})}
        parts = [one["components"] for one in reports]
        return {**content.fields, "extra": extra, "files": files, "world_size": self.world_size, "parts": parts}

    def _mark_name(self, deferred: Deferred) -> str:
        return f"rank-{self.rank}/{deferred.name}"

    def load(
        self,
        into: Mapping[str, Tensor] | None = None,
        accept: Callable[[dict[str, Any]], Any] = lambda state: None,
        take: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state of this process and the manifest of the newest checkpoint that all processes find good."""
        seen = self._gather([folder.name for folder in self.folders()])
        if any(names != seen[0] for names in seen):
            raise CheckpointError(f"the processes do not see the same checkpoints in {self.folder}")
        return super().load(into, accept, take)

    def _load_one(
        self, age: Age, folder: Path, into: Mapping[str, Tensor], accept: Callable[[dict[str, Any]], Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        found, reason = None, None
        try:
            found = super()._load_one(age, folder, into, accept)
        except (DamagedError, CheckpointError) as error:
            reason = str(error)
        self._raise_first(self._gather(reason), "")
        assert found is not None
        return found

    def _read(self, folder: Path, manifest: dict[str, Any], into: Mapping[str, Tensor]) -> dict[str, Any]:
        parts = manifest.get("parts")
        if not isinstance(parts, list) or len(parts) != self.world_size:
            raise DamagedError("manifest.json", "its parts are not those of its processes")
        state: dict[str, Any] = {}
        for rank in sorted({0, self.rank}):
            part = read(folder / f"rank-{rank}", {**manifest, "components": parts[rank]}, into)
            shared = {name: value for name, value in part.items() if name in self.replicated}
            state |= part if rank == self.rank else shared
        return state

    def _gather(self, value: Any) -> list[Any]:
        """What each process gives, which JSON can hold, in the order of their ranks."""
        raw = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        try:
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
            distributed.all_gather(sizes, torch.tensor([len(raw)]), group=self.group)
            most = max(int(size) for size in sizes)
            if not 0 < most <= MAX_ANSWER_BYTES:
                raise RuntimeError(f"an answer of {most} bytes")
            rows = [torch.zeros(most, dtype=torch.uint8) for _ in range(self.world_size)]
            padded = torch.zeros(most, dtype=torch.uint8)
            padded[: len(raw)] = raw
            distributed.all_gather(rows, padded, group=self.group)
        except RuntimeError as error:
            words = f"another process of this run is gone: {' '.join(str(error).split())[:200]}"
            raise CheckpointError(f"no agreement on a checkpoint in {self.folder}: {words}") from error
        return [json.loads(row[: int(size)].numpy().tobytes()) for row, size in zip(rows, sizes, strict=True)]

    def _raise_first(self, reasons: list[str | None], what: str) -> None:
        """Raise, in every process alike, what the first one said that could not."""
        for rank, reason in enumerate(reasons):
            if reason is not None:
                place = f"{what} in {self.folder}: " if what else ""
                raise CheckpointError(f"{place}process {rank}: {reason}" if len(reasons) > 1 else f"{place}{reason}")
