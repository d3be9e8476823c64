"""Write the greedy policy of a run as one file that needs torch alone.

    python scripts/export.py outputs/<algo>-<env>/<run> policy.pt2      (or outputs/.../ckpt/step-<n>)

``act = torch.export.load("policy.pt2").module()`` takes observations ``[N, ...]`` and gives actions ``[N, ...]``; of a
policy that remembers, ``action, memory = act(observation, memory)``, with zeros where an episode begins.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--module", help="of a run that has several")
    arguments = parser.parse_args()
    from runner.config.export import export_or_say_why

    return export_or_say_why(arguments.run, arguments.file, arguments.module)


if __name__ == "__main__":
    sys.exit(main())
