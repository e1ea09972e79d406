"""A worker for torchrun: a barrier, then steps that multiply matrices and sum a small gradient, until it is ended.

Leaves RUN/attempt_N/{barrier,step}_R when rank R has passed its first barrier and its first step.
"""

import os
import pathlib
import sys

import torch
import torch.distributed as dist


def main():
    rank = int(os.environ["RANK"])
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"]) + 1
    marks = pathlib.Path(sys.argv[1]) / f"attempt_{attempt}"
    marks.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    # Not through the agent's store, in which Gloo finds the addresses of the attempt before (torch 2.15.0).
    world_size = int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{marks}/store", rank=rank, world_size=world_size)
    dist.barrier()
    (marks / f"barrier_{rank}").touch()
    gradient, matrix = torch.ones(1 << 16), torch.ones(512, 512)
    step = 0
    while True:
        for _ in range(8):
            torch.mm(matrix, matrix)
        dist.all_reduce(gradient)
        gradient.fill_(1.0)
        step += 1
        if step == 1:
            (marks / f"step_{rank}").touch()


if __name__ == "__main__":
    main()
