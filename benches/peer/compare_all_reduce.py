"""A sum over ranks here and in PyTorch over Gloo, in turns: bandwidth, ratios, and what the system can do.

    python3 benches/peer/compare_all_reduce.py [--ranks 2,4] [--mb 1,16,138] [--rounds 5] [--seconds 1]

Ranks are processes on this machine; all speak TCP over loopback. Here the sum is in the canonical order: the
same bits for every power of two of ranks. `sockets` moves the same bytes between as many processes and adds
nothing. Bandwidth is the buffer's bytes by the median time of a sum; a ratio is of the medians of the rounds.
"""

import argparse
import json
import pathlib
import statistics
import subprocess

from compare_engine import build_bench, python_with_packages

HERE = pathlib.Path(__file__).resolve().parent


def run(command):
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])["gb_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = lambda text: [int(number) for number in text.split(",")]
    parser.add_argument("--ranks", type=numbers, default=[2, 4])
    parser.add_argument("--mb", type=numbers, default=[1, 16, 138])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--python", help="an interpreter that has torch")
    arguments = parser.parse_args()
    python, bench = python_with_packages(arguments.python), build_bench("all_reduce", "reclora-comm")
    print("| ranks | MB | ours GB/s | Gloo GB/s | ratio | sockets GB/s | ours of sockets |")
    print("|-|-|-|-|-|-|-|")
    for ranks in arguments.ranks:
        for mb in arguments.mb:
            shared = [f"ranks={ranks}", f"mb={mb}", f"seconds={arguments.seconds}"]
            sides = {"ours": [], "gloo": [], "sockets": []}
            for _ in range(arguments.rounds):
                sides["ours"].append(run([bench, *shared]))
                sides["gloo"].append(run([python, HERE / "torch_all_reduce.py", *shared]))
                sides["sockets"].append(run([bench, *shared, "what=sockets"]))
            ours, gloo, sockets = (statistics.median(rates) for rates in sides.values())
            print(f"| {ranks} | {mb} | {ours:.2f} | {gloo:.2f} | {ours / gloo:.2f} | ", end="")
            print(f"{sockets:.2f} | {ours / sockets:.2f} |", flush=True)


if __name__ == "__main__":
    main()
