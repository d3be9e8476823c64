"""A process that may take little memory: ``python -m tests.checkpoint.limited <work> <folder> <backend> ...``.

It ends with 0, with 1 where memory ran out, with 2 where what it restored is not what was saved.
"""

import hashlib
import resource
import sys
from pathlib import Path

import torch
from tensordict import TensorDict

from runner.builders import make_replay_buffer
from runner.checkpoint.store import CheckpointStore
from runner.spec import CheckpointError

MIB = 2**20
WIDTH, STEPS = 4096, 100


def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


def limit(own_mib):
    """Let this process have so much more private memory than it has now (RLIMIT_DATA is ``ulimit -d``)."""
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + own_mib * MIB,) * 2)


def digest(tensor):
    raw = hashlib.sha256()
    for part in tensor.split(max(MIB // max(tensor[:1].nbytes, 1), 1)):
        raw.update(part.contiguous().view(torch.uint8).numpy().data)
    return raw.hexdigest()


def numbers(path, mib):
    """A tensor that is the file."""
    return torch.from_file(str(path), shared=True, size=mib * MIB // 8, dtype=torch.int64)


def save_tensor(folder, backend, mib):
    rows = numbers(folder / "rows", mib)
    for first in range(0, len(rows), MIB):
        torch.arange(first, first + len(rows[first : first + MIB]), out=rows[first : first + MIB])
    CheckpointStore(folder, backend=backend).save({"source": {"rows": rows, "cursor": 5}}, {"env_steps": 1})


def restore_tensor(folder, backend, mib):
    """Into another file, which is there already."""
    rows = numbers(folder / "others", mib)
    state, _ = CheckpointStore(folder, backend=backend).load(into={"source/rows": rows})
    is_in_place = state["source"]["rows"].data_ptr() == rows.data_ptr() and state["source"]["cursor"] == 5
    same = (bool((part == torch.arange(first, first + len(part))).all())
            for first, part in ((first, rows[first : first + MIB]) for first in range(0, len(rows), MIB)))  # fmt: skip
    return is_in_place and all(same)


def replay(folder, mib, storage):
    """Two observations of 16 KiB in each row."""
    rows = mib * MIB // (2 * 4 * WIDTH) // STEPS * STEPS
    return make_replay_buffer(capacity=rows, batch_size=32, storage=storage, run=folder)


def save_replay(folder, backend, mib, storage):
    """Fill one and a half times round; its digests go to a file."""
    source, flag = replay(folder, mib, storage), torch.zeros(1, STEPS, dtype=torch.bool)
    observation = torch.empty(1, STEPS, WIDTH)
    after = {"observation": observation, "reward": torch.ones(1, STEPS), "terminated": flag, "done": flag}
    batch = TensorDict({"observation": observation, "action": flag, "next": after}, batch_size=[1, STEPS])
    for number in range(3 * source.storage.capacity // STEPS // 2):
        observation.copy_(torch.arange(WIDTH) + number)
        source.extend(batch)
    CheckpointStore(folder, backend=backend).save({"source": source.state_dict()}, {"env_steps": 1})
    (folder / "digests").write_text(digests(source))


def digests(source):
    return "\n".join(f"{key} {digest(flat)}" for key, flat in source.storage.flat.items())


def restore_replay(folder, backend, mib, storage):
    state, _ = CheckpointStore(folder, backend=backend).load()
    source = replay(folder, mib, storage)
    source.load_state_dict(state["source"])
    return digests(source) == (folder / "digests").read_text() and len(source.sample()["observation"]) == 32


def main(work, folder, backend, mib, own_mib, *storage):
    torch.empty(1).add_(1)  # threads and caches that torch makes at first use are not counted
    limit(int(own_mib))
    try:
        return 2 * (globals()[work](Path(folder), backend, int(mib), *storage) is False)
    except (MemoryError, RuntimeError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
