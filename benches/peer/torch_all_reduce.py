"""One measurement of PyTorch's all_reduce over Gloo: ranks=2 mb=16 seconds=2. Prints a line of JSON.

Real processes on this machine over loopback TCP. Beside `cargo bench -p reclora-comm --bench all_reduce`;
compare_all_reduce.py runs both.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist

SETTINGS = {"ranks": 2, "mb": 16, "seconds": 2, "port": 29511}


def work(rank, settings):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(settings["port"]), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=settings["ranks"])
    buffer = torch.ones(settings["mb"] * 1_000_000 // 4)
    over, times, begun = torch.zeros(1), [], 0
    while True:
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(buffer)
        times.append(time.perf_counter() - start)
        buffer[0] /= settings["ranks"]
        if len(times) == 2:
            begun = time.perf_counter()
        over[0] = len(times) > 4 and time.perf_counter() - begun > settings["seconds"]
        dist.broadcast(over, 0)
        if over.item():
            break
    assert buffer[0].item() == 1.0
    if rank == 0:
        seconds = statistics.median(times[2:])
        rate = 4 * buffer.numel() / seconds / 1e9
        line = {"what": "gloo", "ranks": settings["ranks"], "seconds": seconds, "best": min(times[2:])}
        print(json.dumps({**line, "times": len(times) - 2, "gb_per_second": round(rate, 3)}))
    dist.destroy_process_group()


def main():
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    settings = {name: int(given.get(name, default)) for name, default in SETTINGS.items()}
    if "rank" in given:
        work(int(given["rank"]), settings)
        return
    command = [sys.executable, __file__, *sys.argv[1:]]
    ranks = [subprocess.Popen([*command, f"rank={rank}"]) for rank in range(settings["ranks"])]
    if any([rank.wait() for rank in ranks]):
        sys.exit("a rank failed")


if __name__ == "__main__":
    main()
