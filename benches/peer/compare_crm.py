"""Training the CRM here and in PyTorch, in turns: samples per second, valid AUC, memory, ratios.

    python3 benches/peer/compare_crm.py DATASET [--rounds 3] [--epochs 1] [--samples 0] [--history 60]

DATASET is the directory a run's `prepare` stage wrote (`RUN/dataset`). Both sides train the same network
(the paper's DIN: 64/256/3/1, without dropout) from the same initial weights on the same samples in the same
order. PyTorch is measured with histories padded to the full width and trimmed to each batch's longest; the
faster of the two counts. Exit code 1 where the first losses differ by more than 1e-4, or the valid AUCs by
more than 0.003.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from compare_engine import build_bench, python_with_packages

HERE = pathlib.Path(__file__).resolve().parent


def run(command, threads):
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--samples", type=int, default=0, help="train on the first so many; 0: all")
    parser.add_argument("--history", type=int, default=60)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--python", help="an interpreter that has torch and safetensors")
    arguments = parser.parse_args()
    python, bench = python_with_packages(arguments.python), build_bench("crm")
    sides = {"ours": [], "ours, lazy": [], "PyTorch, padded": [], "PyTorch, trimmed": []}
    with tempfile.TemporaryDirectory() as directory:
        dump = f"{directory}/crm.safetensors"
        shared = [f"{key}={getattr(arguments, key)}" for key in ["epochs", "batch", "threads"]]
        here = [bench, f"data={arguments.dataset}", f"samples={arguments.samples}"]
        here += [f"history={arguments.history}", *shared]
        there = [python, HERE / "torch_crm.py", f"data={dump}", *shared]
        run([*here, f"dump={dump}"], arguments.threads)
        for _ in range(arguments.rounds):
            sides["ours"].append(run(here, arguments.threads))
            sides["PyTorch, padded"].append(run([*there, "trim=no"], arguments.threads))
            sides["ours, lazy"].append(run([*here, "optimizer=lazy_adamw"], arguments.threads))
            sides["PyTorch, trimmed"].append(run([*there, "trim=yes"], arguments.threads))
    speed = {}
    for name, results in sides.items():
        speed[name] = statistics.median(result["samples_per_second"] for result in results)
        memory = max(result["peak_rss_mib"] for result in results)
        auc = results[0]["valid_auc"]
        print(f"{name:18} {speed[name]:9.0f} samples/s  valid AUC {auc:.5f}  peak RSS {memory:.0f} MiB")
    best = max(speed["PyTorch, padded"], speed["PyTorch, trimmed"])
    ours, theirs = sides["ours"][0], sides["PyTorch, padded"][0]
    apart = abs(ours["valid_auc"] - theirs["valid_auc"])
    loss_apart = abs(ours["first_loss"] - theirs["first_loss"])
    print(f"ratio {speed['ours'] / best:.2f} (lazy {speed['ours, lazy'] / best:.2f}), ", end="")
    print(f"AUCs {apart:.6f} apart, first losses {loss_apart:.1e} apart")
    if apart > 0.003 or loss_apart > 1e-4:
        sys.exit("the two sides do not train the same network")


if __name__ == "__main__":
    main()
