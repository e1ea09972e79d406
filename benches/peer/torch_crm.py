"""Training the CRM (DIN) in PyTorch: one measurement, on what `cargo bench --bench crm` dumped.

    python benches/peer/torch_crm.py KEY=VALUE...

`data=FILE` (what `dump=FILE` wrote: initial weights, samples, order), `batch=256`, `epochs=1`, `dropout=0`,
`threads=2`, `trim=no|yes` (cut each batch to its longest history, instead of padding to the full width).
Network, initial weights, order of samples and optimizer are those of the other side: a shared table of
embeddings, attention over the padded history times its mask, AdamW over everything. Prints one JSON
object: samples per second of training, valid AUC, the first loss, peak resident memory.
"""

import json
import resource
import sys
import time

import torch
from safetensors.torch import load_file
from torch import nn

DEFAULTS = {"data": None, "batch": "256", "epochs": "1", "dropout": "0", "threads": "2", "trim": "no"}


class Din(nn.Module):
    """`q` is the target item, `h` the history rows; see the paper's SIM and DIN."""

    def __init__(self, tensors, dropout, item_field):
        super().__init__()
        self.item_field = item_field
        self.embedding = nn.Embedding(*tensors["embedding"].shape)
        self.history = self.linear(tensors, "history")
        self.attention = self.mlp(tensors, "attention", dropout)
        self.prediction = self.mlp(tensors, "prediction", dropout)
        with torch.no_grad():
            self.embedding.weight.copy_(tensors["embedding"])

    @staticmethod
    def linear(tensors, name):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layer

    def mlp(self, tensors, name, dropout):
        layers = []
        while f"{name}.{len(layers) // 3}.weight" in tensors:
            hidden = self.linear(tensors, f"{name}.{len(layers) // 3}")
            layers += [hidden, nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers, self.linear(tensors, f"{name}.output"))

    def forward(self, fields, items, ratings, mask):
        f = self.embedding(fields)
        h = torch.relu(self.history(torch.cat([self.embedding(items), self.embedding(ratings)], -1)))
        q = f[:, self.item_field, None, :].expand_as(h)
        a = self.attention(torch.cat([q, h, q - h, q * h], -1)) * mask[..., None]
        u = (a * h).sum(1)
        return self.prediction(torch.cat([f.flatten(1), u], -1)).squeeze(-1)


def read_options(arguments):
    options = dict(DEFAULTS)
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or key not in options:
            sys.exit(f"{argument}: KEY=VALUE, where KEY is one of {', '.join(options)}")
        options[key] = value
    if options["data"] is None:
        sys.exit("data=FILE is missing; see the top of this file")
    return options


def auc(scores, labels):
    """The share of (positive, negative) pairs in the right order, ties counting half."""
    order = scores.argsort()
    values, inverse, counts = scores[order].unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks = (ends - (counts.double() - 1) / 2)[inverse]
    positive = labels[order] > 0
    p, n = positive.sum().item(), (~positive).sum().item()
    return (ranks[positive].sum().item() - p * (p + 1) / 2) / (p * n)


def main():
    options = read_options(sys.argv[1:])
    torch.set_num_threads(int(options["threads"]))
    torch.manual_seed(0)
    data = load_file(options["data"])
    item_field = int(data["item_field"])
    width = data["train.items"].shape[1]

    def split(name):
        columns = {key: data[f"{name}.{key}"].long() for key in ["fields", "items", "ratings"]}
        # Histories are padded in front.
        places = torch.arange(width)
        columns["mask"] = (places >= width - data[f"{name}.length"][:, None]).float()
        return columns, data[f"{name}.label"].float(), data[f"{name}.length"]

    def batch_of(columns, length, rows):
        batch = {key: values[rows] for key, values in columns.items()}
        if options["trim"] == "yes":
            keep = int(length[rows].max())
            for key in ["items", "ratings", "mask"]:
                batch[key] = batch[key][:, width - keep :]
        return batch

    train, labels, length = split("train")
    model = Din(data, float(options["dropout"]), item_field)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    loss_of = nn.BCEWithLogitsLoss()
    first, seconds, count = None, 0.0, 0
    for epoch in range(int(options["epochs"])):
        order = data[f"order.{epoch}"].long()
        start = time.perf_counter()
        for rows in order.split(int(options["batch"])):
            optimizer.zero_grad()
            loss = loss_of(model(**batch_of(train, length, rows)), labels[rows])
            loss.backward()
            optimizer.step()
            first = loss.item() if first is None else first
        seconds += time.perf_counter() - start
        count += len(order)
    model.eval()
    valid, valid_labels, valid_length = split("valid")
    with torch.no_grad():
        parts = torch.arange(len(valid_labels)).split(1024)
        scores = torch.cat([model(**batch_of(valid, valid_length, rows)) for rows in parts])
    result = {
        "samples_per_second": round(count / seconds),
        "valid_auc": auc(scores, valid_labels),
        "first_loss": first,
        "torch": torch.__version__,
        "trim": options["trim"],
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
