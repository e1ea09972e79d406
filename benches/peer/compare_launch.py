"""Starting ranks, losing one, starting again: here and with torchrun, in turns.

    python3 benches/peer/compare_launch.py [--ranks 8] [--rounds 5]

start: from the command to the first barrier that all ranks have passed (here: to the first task of the stage
       after it, for which the backbone and the data are open already).
end:   from SIGKILL of one rank to the end of the last of the others.
again: from SIGKILL of one rank to the first step of the ranks that were started again (here: of tuning, from a
       checkpoint; with torchrun: of products of 512 x 512 matrices and a sum of 256 KiB).

The workers of torchrun multiply matrices and make that sum, on one thread each; ours tune the shipped experiment.
So both keep the cores busy, which everything that is to end or to start has to share with them.
"""

import argparse
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

from compare_engine import python_with_packages

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
LIMIT = 120.0


def wait(what, there):
    started = time.monotonic()
    while not there():
        if time.monotonic() - started > LIMIT:
            raise SystemExit(f"{what}: not within {LIMIT:.0f} s")
        time.sleep(0.001)


def is_alive(pid):
    try:
        return ") Z " not in pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid):
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def measure(command, environment, attempt, ranks):
    """The three times of one launcher; `attempt(n, kind)` says whether all ranks of attempt n have left a mark."""
    started = time.monotonic()
    launcher = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait("the first barrier", lambda: attempt(1, "barrier"))
        start = time.monotonic() - started
        wait("the first step", lambda: attempt(1, "step"))
        time.sleep(1.0 + random.random())
        workers = children(launcher.pid)
        if len(workers) != ranks:
            raise SystemExit(f"{len(workers)} workers instead of {ranks}")
        victim = random.choice(workers)
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        wait("the end of the others", lambda: not any(is_alive(pid) for pid in workers))
        end = time.monotonic() - killed
        wait("a step of the second attempt", lambda: attempt(2, "step"))
        return start, end, time.monotonic() - killed
    finally:
        launcher.send_signal(signal.SIGINT)
        launcher.wait(timeout=LIMIT)


def ours(program, prepared, ranks):
    with tempfile.TemporaryDirectory() as place:
        run = pathlib.Path(place) / "run"
        shutil.copytree(prepared, run)

        def attempt(number, kind):
            logs = [run / f"logs/tune/attempt_{number}/rank_{rank}/stdout.log" for rank in range(ranks)]
            word = {"barrier": '"event":"start"', "step": '"event":"update"'}[kind]
            return all(log.exists() and word in log.read_text() for log in logs)

        command = [program, "run", ROOT / "configs/quickstart.toml", "--run-dir", run, "--only", "tune"]
        command += ["--nproc-per-node", str(ranks), "--max-restarts", "3", "--set", "tune.checkpoint_every=1"]
        return measure(command, os.environ, attempt, ranks)


def torchrun(python, ranks):
    with tempfile.TemporaryDirectory() as place:

        def attempt(number, kind):
            marks = pathlib.Path(place) / f"attempt_{number}"
            return all((marks / f"{kind}_{rank}").exists() for rank in range(ranks))

        command = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += ["--max-restarts=3", HERE / "torch_launch.py", place]
        return measure(command, {**os.environ, "OMP_NUM_THREADS": "1"}, attempt, ranks)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", help="an interpreter that has torch")
    arguments = parser.parse_args()
    python = python_with_packages(arguments.python)
    subprocess.run(["cargo", "build", "--release", "--locked", "-p", "reclora-launcher"], check=True, cwd=ROOT)
    program = ROOT / "target/release/reclora-launch"
    sides = {"ours": [], "torchrun": []}
    with tempfile.TemporaryDirectory() as place:
        prepared = pathlib.Path(place) / "run"
        command = [program, "run", ROOT / "configs/quickstart.toml", "--run-dir", prepared, "--no-report"]
        for stage in ["prepare", "embed", "retrieve", "pretrain", "few2many"]:
            subprocess.run([*command, "--only", stage], check=True, stderr=subprocess.DEVNULL)
        for _ in range(arguments.rounds):
            sides["ours"].append(ours(program, prepared, arguments.ranks))
            sides["torchrun"].append(torchrun(python, arguments.ranks))
    print(f"{arguments.ranks} ranks, medians of {arguments.rounds} rounds")
    print("| | ours s | torchrun s | ratio |")
    print("|-|-|-|-|")
    for place, name in enumerate(["start", "end", "again"]):
        mine, theirs = (statistics.median(times[place] for times in sides[side]) for side in sides)
        print(f"| {name} | {mine:.3f} | {theirs:.3f} | {theirs / mine:.1f} |")


if __name__ == "__main__":
    main()
