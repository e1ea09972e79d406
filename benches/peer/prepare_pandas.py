"""The data protocol in plain pandas, as the published preprocessing does it, to compare `prepare` with.

    python3 benches/peer/prepare_pandas.py DATA_DIR OUT_DIR

reads movies.csv and ratings.csv of DATA_DIR (the layout of MovieLens-25M), writes train, valid and test
as Parquet and the vocabularies as JSON, and prints one line of JSON: seconds per step and in all, peak
RSS in MB, and what was counted. Needs pandas and pyarrow; on Linux, for the peak RSS.

Join ratings and films; sort by (timestamp, user, item); label rating > 3; k-core; for each rating the
last 60 items of its user before it, and their ratings; drop samples with fewer than 5 earlier ratings;
split 8:1:1 in time order; a vocabulary for each field, in order of first appearance.
"""

import argparse
import json
import os
import resource
import time

import pandas

HISTORY = 60


class Steps:
    """Seconds per step."""

    def __init__(self):
        self.seconds, self.last = {}, time.perf_counter()

    def done(self, name):
        now = time.perf_counter()
        self.seconds[name] = round(now - self.last, 2)
        self.last = now


def k_core(ratings, k):
    """Drops users and items with fewer than k ratings until there is none."""
    while k > 1:
        users = ratings.groupby("userId")["movieId"].transform("size")
        items = ratings.groupby("movieId")["userId"].transform("size")
        kept = (users >= k) & (items >= k)
        if kept.all():
            break
        ratings = ratings[kept]
    return ratings


def histories(ratings):
    """For each row, the items and ratings of the user's earlier rows, and how many there are."""
    items, stars, counts = [], [], []
    past = {}
    rows = zip(ratings["user"].tolist(), ratings["item"].tolist(), ratings["rating"].tolist())
    for user, item, rating in rows:
        seen, rated = past.setdefault(user, ([], []))
        items.append(seen[-HISTORY:])
        stars.append(rated[-HISTORY:])
        counts.append(len(seen))
        seen.append(item)
        rated.append(rating)
    return items, stars, counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--k-core", type=int, default=5)
    parser.add_argument("--min-history", type=int, default=5)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    started, steps = time.perf_counter(), Steps()

    movies = pandas.read_csv(os.path.join(args.data, "movies.csv"))
    ratings = pandas.read_csv(os.path.join(args.data, "ratings.csv"))
    raw_ratings = len(ratings)
    movies["genre"] = movies["genres"].str.split("|").str[0]
    steps.done("read")
    ratings = k_core(ratings, args.k_core)
    steps.done("k_core")
    ratings = ratings.merge(movies[["movieId", "title", "genre"]], on="movieId")
    ratings = ratings.sort_values(["timestamp", "userId", "movieId"], kind="stable")
    ratings["label"] = (ratings["rating"] > 3).astype("int8")
    steps.done("join_sort_label")

    vocabularies = {}
    for column, name in [("userId", "user"), ("movieId", "item"), ("title", "title"), ("genre", "genre")]:
        codes, values = pandas.factorize(ratings[column])
        ratings[name] = codes
        vocabularies[name] = {str(value): code for code, value in enumerate(values)}
    with open(os.path.join(args.out, "vocabularies.json"), "w") as file:
        json.dump(vocabularies, file)
    steps.done("vocabularies")

    ratings["history"], ratings["history_ratings"], ratings["earlier"] = histories(ratings)
    samples = ratings[ratings["earlier"] >= args.min_history]
    steps.done("histories")

    train, valid = int(0.8 * len(samples)), int(0.1 * len(samples))
    parts = {
        "train": samples.iloc[:train],
        "valid": samples.iloc[train : train + valid],
        "test": samples.iloc[train + valid :],
    }
    columns = ["user", "item", "title", "genre", "rating", "label", "timestamp", "history", "history_ratings"]
    size = 0
    for name, part in parts.items():
        path = os.path.join(args.out, f"{name}.parquet")
        part[columns].to_parquet(path, index=False)
        size += os.path.getsize(path)
    steps.done("write")
    print(json.dumps({
        "raw_ratings": raw_ratings,
        "interactions": len(ratings),
        "users": len(vocabularies["user"]),
        "items": len(vocabularies["item"]),
        "features": sum(len(values) for values in vocabularies.values()) + 10,
        "positive_samples": int(samples["label"].sum()),
        **{name: len(part) for name, part in parts.items()},
        "bytes": size,
        "seconds": round(time.perf_counter() - started, 2),
        "steps": steps.seconds,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
    }))


if __name__ == "__main__":
    main()
