"""Speed and memory of one tuning step in PyTorch, transformers and PEFT: one measurement.

    python benches/peer/torch_engine.py KEY=VALUE...

`model=DIR` (a Hugging Face directory), `tokens=FILE` (what `cargo bench ... -- dump=FILE` wrote),
`adapter=plain|reclora`, `seconds=5`, `threads=2`, and how PyTorch is used:

    logits=all|last     the head at every position (transformers' default), or only where the label is
    precision=f32       everything in float32
    precision=bf16      the frozen backbone in bfloat16, adapters (and their arithmetic) in float32
    precision=autocast  the same, but adapters too compute in bfloat16
    compile=no|yes      torch.compile of the whole model
    split=1             into how many parts the batch is cut, one after the other

Prints one JSON object: tokens per second (the median batch and the best), the peak resident memory, the
loss of the first batch. Like the other side, a batch is forward and backward, without an optimizer step;
the backbone is frozen; gradients are set to zero (here: dropped, as zero_grad does) before each batch.
"""

import json
import platform
import sys
import time

import peft
import torch
import transformers
from torch import nn
from torch.nn import functional

EXPERTS, RANK, ALPHA, GATE_HIDDEN, REPRESENTATION = 8, 8, 16, 60, 256
TARGETS = ["q_proj", "v_proj"]
DEFAULTS = {
    "model": None, "tokens": None, "adapter": None, "seconds": "5", "threads": "2",
    "logits": "all", "precision": "f32", "compile": "no", "split": "1",
}  # fmt: skip
CHOICES = {
    "adapter": ["plain", "reclora"],
    "logits": ["all", "last"],
    "precision": ["f32", "bf16", "autocast"],
    "compile": ["no", "yes"],
}


class Gate(nn.Module):
    """Representation to mixture weights. Dropout is off on both sides."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(REPRESENTATION),
            nn.Linear(REPRESENTATION, GATE_HIDDEN),
            nn.ReLU(),
            nn.Dropout(0.0),
            nn.Linear(GATE_HIDDEN, EXPERTS),
        )
        self.temperature = 1.0

    def forward(self, representation):
        return (self.layers(representation) / self.temperature).softmax(dim=-1)


class RecLora(nn.Module):
    """A projection with a bank of LoRAs, mixed for each sample: A = sum of alpha_k A_k, B likewise."""

    def __init__(self, base, batch):
        super().__init__()
        self.base = base
        self.batch = [batch]  # In a list, so that it is no submodule.
        self.gate = Gate()
        bound = base.in_features**-0.5
        self.a = nn.Parameter(torch.empty(EXPERTS, RANK, base.in_features).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(EXPERTS, base.out_features, RANK))

    def forward(self, x):
        weights = self.gate(self.batch[0].representation)
        a = torch.einsum("sk,kri->sri", weights, self.a)
        b = torch.einsum("sk,kor->sor", weights, self.b)
        # As in PEFT: float32 adapters read float32; autocast, where it is on, makes both bfloat16.
        reduced = torch.bmm(x.to(a.dtype), a.transpose(1, 2))
        update = torch.bmm(reduced, b.transpose(1, 2))
        return self.base(x) + (ALPHA / RANK) * update.to(x.dtype)


class Representations:
    """The representations of the samples in work."""

    def __init__(self):
        self.representation = None


def read_options(arguments):
    options = dict(DEFAULTS)
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or key not in options:
            sys.exit(f"{argument}: KEY=VALUE, where KEY is one of {', '.join(options)}")
        if value not in CHOICES.get(key, [value]):
            sys.exit(f"{argument}: {key} is one of {', '.join(CHOICES[key])}")
        options[key] = value
    for key, value in options.items():
        if value is None:
            sys.exit(f"{key}=... is missing; see the top of this file")
    return options


def load_model(options, current):
    """The adapted model. B is zero, so its loss is that of the backbone."""
    dtype = torch.float32 if options["precision"] == "f32" else torch.bfloat16
    model = transformers.LlamaForCausalLM.from_pretrained(
        options["model"], dtype=dtype, attn_implementation="sdpa"
    )
    if options["adapter"] == "plain":
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
        return peft.get_peft_model(model, config)
    model.requires_grad_(False)
    for layer in model.model.layers:
        for name in TARGETS:
            setattr(layer.self_attn, name, RecLora(getattr(layer.self_attn, name), current))
    return model


def loss_of(model, tokens, target, options):
    """The summed loss of these samples at their last position."""
    if options["logits"] == "all":
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    else:
        logits = model(input_ids=tokens, logits_to_keep=1, use_cache=False).logits
    labels = torch.full((len(tokens),), target)
    return functional.cross_entropy(logits[:, -1].float(), labels, reduction="sum")


def measure(options):
    with open(options["tokens"]) as file:
        data = json.load(file)
    tokens = torch.tensor(data["tokens"])
    if data["position"] != tokens.shape[1] - 1:
        sys.exit(f"{options['tokens']}: the label is not at the last position")
    representations = torch.rand(len(tokens), REPRESENTATION) * 2 - 1
    current = Representations()
    model = load_model(options, current).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if options["compile"] == "yes":
        model.compile(dynamic=False)
    parts = int(options["split"])
    if len(tokens) % parts:
        sys.exit(f"split={parts} does not divide the batch of {len(tokens)}")

    def batch():
        for parameter in parameters:
            parameter.grad = None
        total = 0.0
        for some, some_representations in zip(tokens.chunk(parts), representations.chunk(parts)):
            current.representation = some_representations
            autocast = options["precision"] == "autocast"
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = loss_of(model, some, data["target"], options) / len(tokens)
            loss.backward()
            total += loss.item()
        return total

    # The first batch may compile; the second is the warm-up.
    loss = batch()
    batch()
    for parameter in parameters:
        if parameter.grad is None or not parameter.grad.isfinite().all():
            sys.exit("a trained parameter got no finite gradient: this is not a tuning step")
    times = []
    start = time.perf_counter()
    while time.perf_counter() - start < float(options["seconds"]) or len(times) < 3:
        batch_start = time.perf_counter()
        batch()
        times.append(time.perf_counter() - batch_start)
    times.sort()
    trained = sum(parameter.numel() for parameter in parameters)
    return loss, times, tokens.numel(), trained


def peak_resident_mib():
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    sys.exit("/proc/self/status has no VmHWM")


def print_info():
    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, peft))
    print(f"Python {platform.python_version()}, {versions}")
    print(f"PyTorch's own kernels: {torch.backends.cpu.get_cpu_capability()}")
    print(torch.__config__.parallel_info())
    # oneDNN names its instruction set with the first primitive it creates, when ONEDNN_VERBOSE asks.
    x = torch.ones(32, 32, dtype=torch.bfloat16)
    torch.mm(x, x)


def main():
    if sys.argv[1:] == ["info"]:
        print_info()
        return
    options = read_options(sys.argv[1:])
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(1)
    torch.set_num_threads(int(options["threads"]))
    imports = peak_resident_mib()
    loss, times, tokens, trained = measure(options)
    result = {
        "loss": loss,
        "batches": len(times),
        "tokens_per_second": round(tokens / times[len(times) // 2]),
        "tokens_per_second_best": round(tokens / times[0]),
        "peak_rss_mib": round(peak_resident_mib()),
        "imports_rss_mib": round(imports),
        "trained_parameters": trained,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "settings": options,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
