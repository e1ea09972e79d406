"""Bytes on disk per sample: a prepared dataset beside HDF5 files in the layout of the published code.

    python benches/peer/hdf5_bytes.py DATASET DUMP OUT [--history 60]

DATASET is the directory `dataset` of a run; DUMP is what the bench `streaming` dumped of samples of it
(`dump=DUMP`, with the same history); OUT is a directory for the HDF5 files. The published code writes an
array of N x 60 ids and one of N x 60 ratings beside the fields and the label of each sample, all as 64-bit
integers; the narrowest types that hold the numbers and gzip are measured too. Prints one JSON object.
"""

import argparse
import json
import pathlib

import h5py
import numpy


def write(path, columns, compression):
    with h5py.File(path, "w") as out:
        for name, values in columns.items():
            out.create_dataset(name, data=values, compression=compression)
    return path.stat().st_size


def narrowest(values):
    return values.astype(numpy.min_scalar_type(int(values.max())))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=pathlib.Path)
    parser.add_argument("dump", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--history", type=int, default=60)
    arguments = parser.parse_args()
    read = lambda name, dtype: numpy.fromfile(arguments.dump / name, dtype=dtype)
    labels = read("labels.u8", numpy.uint8)
    count = len(labels)
    columns = {
        "fields": read("fields.u32", numpy.uint32).reshape(count, -1),
        "history_ids": read("items.u32", numpy.uint32).reshape(count, arguments.history),
        "history_ratings": read("ratings.u8", numpy.uint8).reshape(count, arguments.history),
        "labels": labels,
    }
    published = {name: values.astype(numpy.int64) for name, values in columns.items()}
    narrow = {name: narrowest(values) for name, values in columns.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    counts = json.loads((arguments.dataset / "manifest.json").read_text())["counts"]
    size = (arguments.dataset / "dataset.shard").stat().st_size
    result = {
        "dataset_bytes_per_sample": size / counts["samples"],
        "dataset_bytes_per_interaction": size / counts["interactions"],
        "samples_in_hdf5": count,
    }
    for name, values in [("published", published), ("narrowest", narrow)]:
        for compression in [None, "gzip"]:
            path = arguments.out / f"{name}-{compression or 'plain'}.h5"
            key = f"hdf5_{name}_{compression or 'plain'}_bytes_per_sample"
            result[key] = write(path, values, compression) / count
    print(json.dumps({key: round(value, 2) for key, value in result.items()}, indent=1))


if __name__ == "__main__":
    main()
