"""This project's engine and PyTorch + transformers + PEFT on the same CPU, by turns.

    python3 benches/peer/compare_engine.py [--rounds 5] [--seconds 5] [--python PATH] [--out FILE]

README.md beside this file says what is measured. Needs Python 3.10 or later, cargo, and, unless --python
names an interpreter that has the packages, the network and room for PyTorch.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "target" / "peer"
PACKAGES = ["torch==2.15.0", "transformers==5.23.0", "peft==0.21.2", "safetensors==0.8.0"]

# Keep freed memory instead of giving it back to the system and faulting it in again.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_THRESHOLD_": "4294967296"}
# Each way of using PyTorch: settings that are tried in turn, each kept if it is faster than what was
# kept before. (settings of torch_engine.py, environment)
TUNING = [
    ({}, KEEP_MEMORY),
    ({}, {"OMP_PROC_BIND": "true"}),
    ({"split": "2"}, {}),
    ({"split": "4"}, {}),
    ({"compile": "yes"}, {}),
]
WAYS = {
    "installed": [({"logits": "all", "precision": "f32"}, {})],
    "tuned": [({"logits": "last", "precision": "f32"}, {}), *TUNING],
    "bf16": [
        ({"logits": "last", "precision": "bf16"}, {}),
        ({"precision": "autocast"}, {}),
        *TUNING,
    ],
}
# Relative difference of the two losses: float32 against float32, and where either is bfloat16.
TOLERANCE = {"f32": 1e-3, "bf16": 1e-2}


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--tune-seconds", type=float, default=3, help="of each setting tried")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", default="S,M")
    parser.add_argument("--adapters", default="plain,reclora")
    parser.add_argument(
        "--pairs",
        default="f32:installed,f32:tuned,bf16:bf16",
        help="OURS:PYTORCH; f32 or bf16, and " + ", ".join(WAYS),
    )
    parser.add_argument("--python", help="an interpreter that has " + " ".join(PACKAGES))
    parser.add_argument("--out", type=pathlib.Path, default=WORK / "measurements.jsonl")
    parser.add_argument("--limit", type=float, default=900, help="seconds a measurement may take")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    for name, known in (("shapes", ["S", "M"]), ("adapters", ["plain", "reclora"])):
        values = getattr(arguments, name).split(",")
        if not set(values) <= set(known):
            parser.error(f"--{name}: some of {', '.join(known)}, with commas between")
        setattr(arguments, name, values)
    arguments.pairs = [pair.partition(":")[::2] for pair in arguments.pairs.split(",")]
    for ours, theirs in arguments.pairs:
        if ours not in TOLERANCE or theirs not in WAYS:
            parser.error(f"--pairs: {ours}:{theirs} is not OURS:PYTORCH")
    return arguments


def python_with_packages(given):
    if given:
        return given
    python = WORK / "venv" / "bin" / "python"
    if not python.exists():
        venv.create(WORK / "venv", with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return str(python)


def build_bench(name, package="reclora-trainer"):
    """The path of one of our benches, built."""
    command = ["cargo", "bench", "--locked", "-p", package, "--bench", name, "--no-run"]
    command.append("--message-format=json-render-diagnostics")
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in lines.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and message["target"]["name"] == name:
            return message["executable"]
    sys.exit(f"cargo named no executable of the bench `{name}`")


class Runner:
    """Runs one measurement in a process of its own, and keeps its line."""

    def __init__(self, arguments, python, bench):
        self.arguments = arguments
        self.python = python
        self.bench = bench
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        self.out = open(arguments.out, "w")

    def run(self, command, environment, about):
        threads = str(self.arguments.threads)
        limits = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment = {**os.environ, **limits, **environment}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=self.arguments.limit
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{' '.join(command)}: not done in {self.arguments.limit:g} s") from None
        if done.returncode != 0:
            raise Failed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
        result = {**about, **json.loads(done.stdout.splitlines()[-1])}
        if result["threads"] != self.arguments.threads:
            raise Failed(f"{' '.join(command)}: used {result['threads']} threads")
        self.out.write(json.dumps(result) + "\n")
        self.out.flush()
        return result

    def ours(self, shape, adapter, weights, seconds, about, **more):
        options = {"shape": shape, "adapter": adapter, "seconds": f"{seconds:g}"}
        options |= {"threads": str(self.arguments.threads), "model": str(model_dir(shape)), **more}
        if weights != "f32":
            options["weights"] = weights
        result = self.run([self.bench, *assignments(options)], {}, {"side": "ours", **about})
        if result.get("weights", "f32") != weights:
            raise Failed(f"the bench was asked for weights={weights} and reports {result}")
        return result

    def pytorch(self, shape, adapter, settings, environment, seconds, about):
        options = {"model": str(model_dir(shape)), "tokens": str(tokens_file(shape))}
        options |= {"adapter": adapter, "seconds": f"{seconds:g}"}
        options |= {"threads": str(self.arguments.threads), **settings}
        command = [self.python, str(HERE / "torch_engine.py"), *assignments(options)]
        about = {"side": "pytorch", "shape": shape, "environment": environment, **about}
        # What torch.compile keeps on disk is of this measurement alone: one that is killed while it
        # writes there does no harm to later ones. Its compilers may outlive it for a moment.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
            return self.run(command, {**environment, "TORCHINDUCTOR_CACHE_DIR": cache}, about)


class Failed(Exception):
    """A measurement that gave no result."""


def assignments(options):
    return [f"{key}={value}" for key, value in options.items()]


def model_dir(shape):
    return WORK / "models" / shape


def tokens_file(shape):
    return WORK / "models" / f"{shape}_tokens.json"


def described(settings, environment):
    return " ".join(assignments({**settings, **environment}))


def tune(runner, shape, adapter, way):
    """The fastest of a way's settings: greedily, each on top of those kept before it."""
    if len(WAYS[way]) == 1:
        return WAYS[way][0]
    kept, best = ({}, {}), 0
    for settings, environment in WAYS[way]:
        settings, environment = {**kept[0], **settings}, {**kept[1], **environment}
        seconds = runner.arguments.tune_seconds
        about = {"way": way, "phase": "tune"}
        try:
            result = runner.pytorch(shape, adapter, settings, environment, seconds, about)
        except Failed as failure:
            # A setting that does not work here (torch.compile without a C++ compiler) is not kept; that
            # the first one works is required.
            if not best:
                raise
            print(f"  {way}: {described(settings, environment)}: failed, not kept\n{failure}")
            continue
        speed = result["tokens_per_second"]
        faster = speed > best
        print(f"  {way}: {described(settings, environment)}: {speed} tokens/s{', kept' * faster}")
        if faster:
            kept, best = (settings, environment), speed
    return kept


def check_losses(ours, theirs, precisions):
    tolerance = TOLERANCE["f32" if set(precisions) == {"f32"} else "bf16"]
    difference = abs(ours["loss"] - theirs["loss"]) / abs(theirs["loss"])
    if not difference <= tolerance:
        raise Failed(
            f"the two sides do not compute the same: losses {ours['loss']} and {theirs['loss']} "
            f"differ by {difference:.2g} (at most {tolerance:g})\n{ours}\n{theirs}"
        )
    return difference


def compare(runner, shape, adapter, pair, settings, environment):
    """Measurements of both sides, in pairs; who comes first alternates."""
    weights, way = pair
    ours, theirs, seconds = [], [], runner.arguments.seconds
    for round_ in range(runner.arguments.rounds):
        about = {"pair": f"{weights}:{way}", "way": way, "round": round_, "phase": "compare"}
        sides = [
            lambda: ours.append(runner.ours(shape, adapter, weights, seconds, about)),
            lambda: theirs.append(
                runner.pytorch(shape, adapter, settings, environment, seconds, about)
            ),
        ]
        for side in sides if round_ % 2 == 0 else reversed(sides):
            side()
        precision = "f32" if settings["precision"] == "f32" else "bf16"
        difference = check_losses(ours[-1], theirs[-1], [weights, precision])
    return ours, theirs, difference


def row(side, results):
    speeds = [result["tokens_per_second"] for result in results]
    memory = statistics.median(result["peak_rss_mib"] for result in results)
    spread = f"{min(speeds):.0f}-{max(speeds):.0f}"
    return f"| {side} | {statistics.median(speeds):.0f} | {spread} | {memory:.0f} |"


def print_comparison(pair, ours, theirs, difference, how):
    speeds = [[result["tokens_per_second"] for result in side] for side in (ours, theirs)]
    of_medians = statistics.median(speeds[0]) / statistics.median(speeds[1])
    of_pairs = statistics.median(a / b for a, b in zip(*speeds))
    share = statistics.median(result["share_of_gemm_peak"] for result in ours)
    memory = [statistics.median(r["peak_rss_mib"] for r in side) for side in (ours, theirs)]
    print(f"\n| {pair[0]}:{pair[1]} | tokens/s | min-max | peak RSS MiB | ratio of medians ", end="")
    print("| median of ratios | memory | of our GEMM peak |\n|-|-|-|-|-|-|-|-|")
    ratios = f" {of_medians:.2f} | {of_pairs:.2f} | {memory[0] / memory[1]:.2f} | {share:.2f} |"
    print(row(f"ours, {pair[0]}", ours) + ratios)
    print(row(f"PyTorch, {pair[1]}", theirs) + " | | | |")
    imported = statistics.median(result["imports_rss_mib"] for result in theirs)
    print(f"\nPyTorch with {how}; losses differ by {difference:.1e}. ", end="")
    print(f"Of its memory {imported:.0f} MiB are the imports alone.", flush=True)


def print_machine(python):
    wanted = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        wanted.setdefault(key.strip(), value.strip())
    flags = wanted.get("flags", "").split()
    vector = [flag for flag in flags if flag.startswith(("avx", "fma", "amx", "f16c"))]
    print(f"CPU: {wanted.get('model name', platform.processor())}, {os.cpu_count()} CPUs visible")
    print(f"vector instructions: {' '.join(vector)}")
    print(f"load average before: {os.getloadavg()[0]:.2f}")
    command = [python, str(HERE / "torch_engine.py"), "info"]
    environment = {**os.environ, "ONEDNN_VERBOSE": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines():
        # Of oneDNN's report, the lines about the library, not those about each operation.
        if line.strip() and ("onednn" not in line or ",info," in line):
            print(line)


def main():
    arguments = read_arguments()
    WORK.mkdir(parents=True, exist_ok=True)
    python = python_with_packages(arguments.python)
    runner = Runner(arguments, python, build_bench("engine"))
    print_machine(python)
    failed = False
    for shape in arguments.shapes:
        # Makes the random model when it is missing, so that no measurement does.
        about = {"phase": "prepare"}
        model_dir(shape).parent.mkdir(parents=True, exist_ok=True)
        runner.ours(shape, "plain", "f32", 0, about, dump=str(tokens_file(shape)))
        for adapter in arguments.adapters:
            print(f"\n## Shape {shape}, {adapter}\n", flush=True)
            for pair in arguments.pairs:
                try:
                    settings, environment = tune(runner, shape, adapter, pair[1])
                    results = compare(runner, shape, adapter, pair, settings, environment)
                except Failed as failure:
                    failed = True
                    print(f"\n{pair[0]}:{pair[1]}: FAILED, no ratio\n{failure}", flush=True)
                    continue
                print_comparison(pair, *results, described(settings, environment))
    print(f"\nEvery measurement: {arguments.out}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
