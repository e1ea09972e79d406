"""A shuffled epoch through MosaicML Streaming: one measurement, on what the bench `streaming` dumped.

    python benches/peer/mosaic_streaming.py DUMP MDS [--history 60] [--batch 256] [--workers 0]

DUMP is the directory of plain numbers, MDS a directory for its shards (written when missing). Prints one
JSON object: samples per second of an epoch (the better of two), bytes on disk per sample, the checksum.
"""

import argparse
import json
import pathlib
import shutil
import time

import numpy
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader


def write(dump, target, width):
    labels = numpy.fromfile(dump / "labels.u8", dtype=numpy.uint8)
    count = len(labels)
    fields = numpy.fromfile(dump / "fields.u32", dtype=numpy.uint32).reshape(count, -1).astype(numpy.int32)
    items = numpy.fromfile(dump / "items.u32", dtype=numpy.uint32).reshape(count, width).astype(numpy.int32)
    ratings = numpy.fromfile(dump / "ratings.u8", dtype=numpy.uint8).reshape(count, width)
    columns = {
        "fields": f"ndarray:int32:{fields.shape[1]}",
        "items": f"ndarray:int32:{width}",
        "ratings": f"ndarray:uint8:{width}",
        "label": "uint8",
    }
    with MDSWriter(out=str(target), columns=columns) as out:
        for row in range(count):
            sample = {"fields": fields[row], "items": items[row], "ratings": ratings[row]}
            out.write(sample | {"label": labels[row]})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dump", type=pathlib.Path)
    parser.add_argument("mds", type=pathlib.Path)
    parser.add_argument("--history", type=int, default=60)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    if not (arguments.mds / "index.json").exists():
        shutil.rmtree(arguments.mds, ignore_errors=True)
        write(arguments.dump, arguments.mds, arguments.history)
    dataset = StreamingDataset(
        local=str(arguments.mds), shuffle=True, shuffle_seed=42, batch_size=arguments.batch
    )
    loader = DataLoader(dataset, batch_size=arguments.batch, num_workers=arguments.workers)
    speeds, checksum, count = [], 0, 0
    for _ in range(2):
        start, checksum, count = time.perf_counter(), 0, 0
        for batch in loader:
            count += len(batch["label"])
            checksum += sum(int(batch[name].sum()) for name in ["fields", "items", "ratings", "label"])
        speeds.append(count / (time.perf_counter() - start))
    size = sum(path.stat().st_size for path in arguments.mds.iterdir())
    result = {"samples_per_second": round(max(speeds)), "bytes_per_sample": size / len(dataset)}
    print(json.dumps(result | {"checksum": checksum, "samples": count, "workers": arguments.workers}))


if __name__ == "__main__":
    main()
