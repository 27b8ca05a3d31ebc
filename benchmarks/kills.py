"""A hundred runs, each killed (SIGKILL) once at a random moment and resumed: is the lineage that of a run left alone?

Over five values of PYTHONHASHSEED; every second run is killed and resumed with a pool of two workers, whose candidates
leave checkpoints after every step. "Identical" means lineage.json and frontier.json but for timings, and that the
doctor finds nothing wrong.

    python benchmarks/kills.py [--quick] [--kills N]
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kills import attempt
from morphogen.cli.doctor import examine
from morphogen.run import evolve, load
from tiny import untimed, write_config

HASH_SEEDS = (0, 1, 2, 3, 4)


def trials(config: Path, folder: Path, hash_seed: int, kills: int) -> tuple[int, int]:
    """(kills that struck, runs that ended identical) of this process's hash seed."""
    experiment = load(config)
    evolve(experiment, folder / "whole", generations=0)  # whatever torch imports only now, it imports once
    seconds = {}
    for workers in (None, 2):
        began = time.perf_counter()
        attempt(experiment, folder / f"whole-{workers}", None, 0.0, workers)
        seconds[workers] = time.perf_counter() - began
    rng = random.Random(hash_seed)
    struck = identical = 0
    for number in range(kills):
        out, workers = folder / f"run-{number}", None if number % 2 else 2
        tokens = 1 if workers else 0
        moment = f"{rng.random():.4f}"
        while (code := attempt(experiment, out, moment, seconds[workers], workers, checkpoint_tokens=tokens)) == 0:
            out, moment = out.with_name(f"{out.name}-again"), f"{rng.random():.4f}"  # it was done before it came
        struck += code == -9
        code = attempt(experiment, out, None, 0.0, workers, checkpoint_tokens=tokens)
        same = all(
            untimed(out / name) == untimed(folder / "whole-None" / name) for name in ("lineage.json", "frontier.json")
        )
        identical += code == 0 and same and examine(out) == []
    return struck, identical


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 kills")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--inside", nargs=4, metavar=("CONFIG", "FOLDER", "SEED", "KILLS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        config, folder, seed, kills = args.inside
        print(*trials(Path(config), Path(folder), int(seed), int(kills)))
        return
    each = (10 if args.quick else args.kills) // len(HASH_SEEDS)
    struck = identical = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_config(folder)
        for seed in HASH_SEEDS:
            env = os.environ | {
                "PYTHONHASHSEED": str(seed),
                "OMP_NUM_THREADS": "1",
                "MORPHOGEN_CACHE": str(folder / "cache"),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            }
            inside = [str(config), str(folder / f"seed-{seed}"), str(seed), str(each)]
            command = [sys.executable, __file__, "--inside", *inside]
            told = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if told.returncode:
                sys.exit(f"PYTHONHASHSEED {seed}: exit code {told.returncode}\n{told.stderr}")
            kills, same = map(int, told.stdout.split())
            print(f"PYTHONHASHSEED {seed}: {kills} kills, {same} identical", flush=True)
            struck, identical = struck + kills, identical + same
    print(f"{identical} of {struck} identical")
    sys.exit(identical != struck)


if __name__ == "__main__":
    main()
