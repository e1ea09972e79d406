#!/usr/bin/env python3
"""Writes the results of finished runs as Markdown tables, for docs/results.md.

    python3 scripts/results.py RUN...

Everything is taken from each run's config.toml and report/summary.json; nothing is computed here.
"""

import json
import sys
import tomllib
from pathlib import Path

LABELS = {
    "reclora": "RecLoRA",
    "lora": "plain LoRA",
    "lora_crm": "plain LoRA + CRM",
    "crm": "CRM",
    "crm_no_vectors": "CRM, no vectors",
    "history_text": "history + text",
    "history": "history",
    "logistic_regression": "logistic regression",
    "item_mean": "item mean",
}
# What the LLM brings: a model less its reference.
LINES = [
    ("vectors in the CRM", "crm", "crm_no_vectors"),
    ("tuned LLM over it", "reclora", "crm"),
    ("both together", "reclora", "crm_no_vectors"),
]


def number(value):
    return "-" if value is None else f"{value:.4f}"


def signed(by):
    if by is None:
        return ""
    text = f"{by['difference']:+.4f}"
    if by.get("ci95"):
        low, high = by["ci95"]
        text += f" [{low:+.4f}, {high:+.4f}]"
    return text


def table(run):
    config = tomllib.loads((run / "config.toml").read_text())
    summary = json.loads((run / "report" / "summary.json").read_text())
    scored, metrics = summary["scored"], summary["metrics"]
    backbone = Path(config["backbone"]["path"]).stem
    seconds = sum(summary["stages"].values())
    print(f"**{config['name']}**, {backbone}, seed {config['seed']}: {scored['samples']} of {scored['of_samples']} test")
    print(f"samples, {scored['users']} users; {seconds / 60:.1f} minutes.\n")
    print("| model | AUC | log loss | gAUC | AUC less the CRM's | gAUC less the item mean's |")
    print("|-|-|-|-|-|-|")
    for key, label in LABELS.items():
        if key not in metrics:
            continue
        model = metrics[key]
        # Differences are kept to references: that to the item mean is the item mean's, turned round.
        mean = metrics["item_mean"]["differences"].get(key, {}).get("gauc")
        if mean is not None:
            ends = mean.get("ci95")
            mean = {"difference": -mean["difference"], "ci95": ends and [-ends[1], -ends[0]]}
        row = [label, number(model["auc"]), number(model["log_loss"]), number(model["gauc"])]
        print("| " + " | ".join(row + [signed(model["differences"].get("crm", {}).get("auc")), signed(mean)]) + " |")
    found = [
        (what, metrics[model]["differences"][reference])
        for what, model, reference in LINES
        if model in metrics and reference in metrics[model]["differences"]
    ]
    if found:
        print("\n| what the LLM brings | AUC | gAUC |\n|-|-|-|")
        for what, by in found:
            print(f"| {what} | {signed(by['auc'])} | {signed(by['gauc'])} |")
    for key, gain in summary.get("gains", {}).items():
        print(f"\n{LABELS[key]}: g = {gain['gain']:g}, correlation with the CRM's logit {gain['correlation']:+.2f}.")
    print()


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    for run in map(Path, sys.argv[1:]):
        if not (run / "report" / "summary.json").is_file():
            sys.exit(f"results.py: {run} holds no report/summary.json; finish that run first")
        table(run)


if __name__ == "__main__":
    main()
