"""Metrics and intervals of a run, computed again from its predictions by other means.

Run by hand; needs the network once:

    python3 -m venv venv
    venv/bin/pip install numpy scikit-learn pyarrow
    venv/bin/python trainer/tests/peer/check_statistics.py RUN...

Reads RUN/predictions/test.parquet and RUN/predictions/metrics.json. AUC (scikit-learn), log loss (scikit-learn,
of probabilities kept 1e-7 away from 0 and 1), accuracy, gAUC and their differences must agree within 1e-6. Intervals
are those of a bootstrap over users of this script's own: numpy's generator with another seed, AUC from sorted
weights. Two bootstraps of one distribution differ by chance. The standard error of a quantile q of B values with
density f there is sqrt(q (1 - q) / B) / f; with the density of a normal distribution of standard deviation s at its
2.5 % quantile, 0.0584 / s, and B = 1000, that is 0.084 s, and of the difference of two 0.12 s. So an end may be
TOLERANCE = 0.5 of the resamples' standard deviation away, four times as much. One line for each RUN, PASS or FAIL, after the figures;
exit code 1 if anything is off.
"""

import json
import pathlib
import sys

import numpy
import pyarrow.parquet
from sklearn.metrics import log_loss, roc_auc_score

EXACT = 1e-6
TOLERANCE = 0.5
RESAMPLES = 1000
REFERENCES = ("reclora", "crm")


class Model:
    """A model's samples from the least likely on, in groups of equal probability."""

    def __init__(self, users, labels, probabilities):
        order = numpy.argsort(probabilities, kind="stable")
        self.users, self.labels = users[order], labels[order]
        ordered = probabilities[order]
        self.starts = numpy.flatnonzero(numpy.r_[True, ordered[1:] != ordered[:-1]])
        # AUC within each user (nan where the labels are of one class) and number of samples.
        self.user_auc = numpy.full(users.max() + 1, numpy.nan)
        self.user_samples = numpy.bincount(users)
        for user in range(len(self.user_auc)):
            mine = users == user
            if 0 < labels[mine].sum() < mine.sum():
                self.user_auc[user] = roc_auc_score(labels[mine], probabilities[mine])

    def auc(self, counts):
        weights = counts[self.users]
        likes = numpy.add.reduceat(weights * self.labels, self.starts)
        dislikes = numpy.add.reduceat(weights * ~self.labels, self.starts)
        if not likes.sum() or not dislikes.sum():
            return numpy.nan
        below = numpy.cumsum(dislikes) - dislikes
        return (likes * (below + dislikes / 2)).sum() / (likes.sum() * dislikes.sum())

    def gauc(self, counts):
        weights = numpy.where(numpy.isnan(self.user_auc), 0, counts * self.user_samples)
        if not weights.sum():
            return numpy.nan
        return (weights * numpy.nan_to_num(self.user_auc)).sum() / weights.sum()


class Check:
    def __init__(self):
        self.values = self.ends = 0
        self.largest_value = self.largest_end = 0.0
        self.problems = []

    def value(self, what, mine, theirs):
        self.values += 1
        if theirs is None or numpy.isnan(mine):
            if theirs is not None or not numpy.isnan(mine):
                self.problems.append(f"{what}: {theirs}, here {mine}")
            return
        self.largest_value = max(self.largest_value, abs(mine - theirs))
        if abs(mine - theirs) > EXACT:
            self.problems.append(f"{what}: {theirs}, here {mine}")

    def interval(self, what, resampled, theirs):
        defined = resampled[~numpy.isnan(resampled)]
        if theirs is None:
            # No resample with two classes, or hardly any.
            if len(defined) > 0.95 * len(resampled):
                self.problems.append(f"{what}: no interval")
            return
        spread = defined.std()
        for mine, end in zip(numpy.quantile(defined, [0.025, 0.975]), theirs):
            self.ends += 1
            away = abs(mine - end) / spread if spread > 0 else float(abs(mine - end) > EXACT)
            self.largest_end = max(self.largest_end, away)
            if away > TOLERANCE:
                self.problems.append(f"{what}: end {end:.4f}, here {mine:.4f}, {away:.2f} deviations away")


def ends(interval):
    return "no interval" if interval is None else f"[{interval[0]:+.4f}, {interval[1]:+.4f}]"


def said_of(by):
    return "-" if by["difference"] is None else f"{by['difference']:+.4f} {ends(by['ci95'])}"


def check(run):
    run = pathlib.Path(run)
    table = pyarrow.parquet.read_table(run / "predictions" / "test.parquet")
    metrics = json.loads((run / "predictions" / "metrics.json").read_text())
    names = table.column_names[5:]
    users = numpy.unique(table["user"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    labels = table["label"].to_numpy(zero_copy_only=False).astype(bool)
    probabilities = {name: table[name].to_numpy() for name in names}
    models = {name: Model(users, labels, probabilities[name]) for name in names}
    found = Check()
    found.value("samples", len(labels), metrics["scored"]["samples"])
    found.value("users", users.max() + 1, metrics["scored"]["users"])
    if set(names) != set(metrics["models"]):
        found.problems.append(f"models: {sorted(metrics['models'])}, in the predictions {sorted(names)}")

    random = numpy.random.default_rng(20240803)
    once = numpy.ones(users.max() + 1, dtype=numpy.int64)
    draws = [
        numpy.bincount(random.integers(0, len(once), len(once)), minlength=len(once)) for _ in range(RESAMPLES)
    ]
    figures = {"auc": Model.auc, "gauc": Model.gauc}
    estimates = {(n, f): of(models[n], once) for n in names for f, of in figures.items()}
    resampled = {
        (n, f): numpy.array([of(models[n], counts) for counts in draws])
        for n in names
        for f, of in figures.items()
    }
    for name in names:
        said = metrics["models"][name]
        exact = numpy.clip(probabilities[name].astype(float), 1e-7, 1 - 1e-7)
        found.value(f"{name} auc", roc_auc_score(labels, probabilities[name]), said["metrics"]["auc"])
        found.value(f"{name} gauc", estimates[name, "gauc"], said["metrics"]["gauc"])
        found.value(f"{name} log_loss", log_loss(labels, exact), said["metrics"]["log_loss"])
        accuracy = ((probabilities[name] >= 0.5) == labels).mean()
        found.value(f"{name} accuracy", accuracy, said["metrics"]["accuracy"])
        for figure in figures:
            found.interval(f"{name} {figure}", resampled[name, figure], said["metrics"][f"{figure}_ci95"])
        for reference in REFERENCES:
            if reference == name:
                continue
            for figure in figures:
                what = f"{name} {figure} less {reference}'s"
                by = said["differences"][reference][figure] or {"difference": None, "ci95": None}
                mine = resampled[name, figure] - resampled[reference, figure]
                found.value(what, estimates[name, figure] - estimates[reference, figure], by["difference"])
                found.interval(what, mine, by["ci95"])
                print(f"{what}: {said_of(by)}, here {ends(numpy.nanquantile(mine, [0.025, 0.975]))}")
    for problem in found.problems:
        print(f"  {problem}")
    print(
        f"{'FAIL' if found.problems else 'PASS'}: {run}: {len(labels)} samples of {users.max() + 1} users, "
        f"{found.values} values, max abs difference {found.largest_value:.2g}; {found.ends} ends of intervals, "
        f"at most {found.largest_end:.2f} standard deviations away"
    )
    return not found.problems


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    results = [check(run) for run in sys.argv[1:]]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
