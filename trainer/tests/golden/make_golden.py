"""Golden values of each model family: transformers and PyTorch autograd on tiny random models.

Run by hand; needs the network once, and room for torch (PyPI's brings CUDA along; the CPU is enough):

    python3 -m venv venv
    venv/bin/pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy
    venv/bin/python trainer/tests/golden/make_golden.py            # writes family-*.safetensors
    venv/bin/python trainer/tests/golden/make_golden.py --check    # compares them with what it makes
    venv/bin/python trainer/tests/golden/make_golden.py --verify   # float64 and finite differences

A case is transformers' own model of a config.json, with personalised LoRA added to the outputs of all
seven projections by forward hooks:

    g = W2 ReLU(W1 LayerNorm(c) + b1) + b2,  alpha = softmax(g / T)          (LayerNorm's scale: 1 + weight)
    factor:   y = W x + (lora_alpha / r) (sum alpha_k B_k) (sum alpha_k A_k) x
    product:  y = W x + (lora_alpha / r) sum alpha_k B_k A_k x

Its file holds the weights (backbone.*), three sequences (ids one after another, lens), the gates' input c,
label, and what follows from them in float32: logits after the last token, alpha [sequence, module, N],
loss (mean over the sequences of the cross-entropy over the whole vocabulary after the last token), and each
trained tensor (param.*) with its gradient (grad.*). Metadata, "case": a JSON object of config.json and the
adapter's settings.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import safetensors  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch.nn import functional  # noqa: E402

HERE = pathlib.Path(__file__).parent
EXPERTS, RANK, LORA_ALPHA, TEMPERATURE = 3, 4, 8.0, 1.5
WIDTH, GATE_HIDDEN = 12, 2
YES, NO = 5, 9
LENGTHS, LABELS = [40, 21, 11], [1, 0, 1]
LAYERS = 2
PROJECTIONS = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
MODULES = [f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in PROJECTIONS]


def config(family, model_type, **settings):
    """The config.json of a tiny model, in the words of published ones."""
    return {
        "architectures": [f"{family}ForCausalLM"],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 37,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **settings,
    }


# Windows (8) and the original length (32) are shorter than the longest sequence (40). The pairs of a
# head turn once in 6.3, 17, 44 and 118 positions (theta 50, head_dim 8): with llama3's factors the first
# frequency is a high one, the second in between, the others low.
CASES = {
    "llama": ("factor", config("Llama", "llama", num_key_value_heads=4, rope_theta=100.0)),
    "llama-product": (
        "product",
        config("Llama", "llama", num_key_value_heads=4, rope_scaling=None, pretraining_tp=1),
    ),
    "llama3": (
        "factor",
        config(
            "Llama",
            "llama",
            head_dim=8,
            rope_theta=50.0,
            rope_scaling={
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
                "rope_type": "llama3",
            },
            tie_word_embeddings=True,
        ),
    ),
    "llama-linear": (
        "factor",
        config(
            "Llama",
            "llama",
            attention_bias=True,
            rope_theta=50.0,
            rope_scaling={"factor": 4.0, "type": "linear"},
        ),
    ),
    "mistral": ("factor", config("Mistral", "mistral", head_dim=8, rope_theta=100.0, sliding_window=8)),
    "qwen2": (
        "factor",
        config(
            "Qwen2",
            "qwen2",
            rope_theta=100.0,
            sliding_window=8,
            use_sliding_window=False,
            max_window_layers=1,
            tie_word_embeddings=True,
        ),
    ),
    "qwen2-window": (
        "product",
        config(
            "Qwen2",
            "qwen2",
            rope_parameters={"rope_theta": 100.0, "rope_type": "default"},
            sliding_window=8,
            use_sliding_window=True,
            max_window_layers=1,
        ),
    ),
    "qwen3": (
        "factor",
        config(
            "Qwen3",
            "qwen3",
            head_dim=8,
            attention_bias=False,
            rope_theta=100.0,
            sliding_window=None,
            use_sliding_window=False,
            tie_word_embeddings=True,
        ),
    ),
    "qwen3-window": (
        "product",
        config(
            "Qwen3",
            "qwen3",
            head_dim=8,
            attention_bias=True,
            rope_parameters={"rope_theta": 100.0, "rope_type": "default"},
            sliding_window=8,
            use_sliding_window=True,
            layer_types=["sliding_attention", "full_attention"],
        ),
    ),
}


def path_of(case):
    return HERE / f"family-{case}.safetensors"


class Random:
    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, shape, bound):
        return (torch.rand(shape, generator=self.generator) * 2 - 1) * bound

    def integers(self, shape, high):
        return torch.randint(high, shape, generator=self.generator)


def random_model(settings, random):
    """transformers' model of a config.json. Every weight is random: norms about 1, biases about 0, and
    matrices so large that each block changes the residual stream by about its own size."""
    cls = getattr(transformers, settings["architectures"][0])
    model = cls(cls.config_class.from_dict(dict(settings), attn_implementation="eager")).eval()
    for name, weight in sorted(model.named_parameters()):
        if weight.dim() == 2:
            value = random.uniform(weight.shape, (3 / weight.shape[1]) ** 0.5)
        else:
            value = random.uniform(weight.shape, 0.5) + (0.0 if name.endswith("bias") else 1.0)
        weight.data.copy_(value)
        weight.requires_grad_(False)
    return model


def random_parameters(model, random):
    """The trained tensors, by name."""
    parameters = {}
    for module in MODULES:
        d_out, d_in = model.get_submodule(module).weight.shape
        parameters |= {
            f"{module}.lora_A": random.uniform((EXPERTS, RANK, d_in), 0.3),
            f"{module}.lora_B": random.uniform((EXPERTS, d_out, RANK), 0.3),
            f"{module}.gate.norm.weight": random.uniform((WIDTH,), 0.5),
            f"{module}.gate.norm.bias": random.uniform((WIDTH,), 0.5),
            f"{module}.gate.fc1.weight": random.uniform((GATE_HIDDEN, WIDTH), 0.4),
            # Positive: each hidden unit is open for some sequence.
            f"{module}.gate.fc1.bias": random.uniform((GATE_HIDDEN,), 0.5) + 1.0,
            f"{module}.gate.fc2.weight": random.uniform((EXPERTS, GATE_HIDDEN), 1.0),
            f"{module}.gate.fc2.bias": random.uniform((EXPERTS,), 0.5),
        }
    return parameters


def mixture_weights(parameters, module, c):
    def gate(layer):
        return (parameters[f"{module}.gate.{layer}.{part}"] for part in ("weight", "bias"))

    weight, bias = gate("norm")
    normed = functional.layer_norm(c, (WIDTH,), 1 + weight, bias, eps=1e-5)
    hidden = functional.linear(normed, *gate("fc1")).relu()
    logits = functional.linear(hidden, *gate("fc2"))
    return (logits / TEMPERATURE).softmax(-1)


def update(form, a, b, alpha, x):
    """What LoRA adds to a projection of x."""
    scale = LORA_ALPHA / RANK
    if form == "factor":
        a, b = torch.einsum("k,kri->ri", alpha, a), torch.einsum("k,kor->or", alpha, b)
        return scale * (x @ a.T) @ b.T
    return scale * sum(alpha[k] * (x @ a[k].T) @ b[k].T for k in range(EXPERTS))


def adapted_logits(model, form, parameters, ids, c):
    """Logits after the last token, and the mixture weights [module, N]."""
    alphas = {module: mixture_weights(parameters, module, c) for module in MODULES}

    def hook(module):
        a, b = parameters[f"{module}.lora_A"], parameters[f"{module}.lora_B"]
        return lambda _, inputs, output: output + update(form, a, b, alphas[module], inputs[0])

    with contextlib.ExitStack() as stack:
        for module in MODULES:
            handle = model.get_submodule(module).register_forward_hook(hook(module))
            stack.callback(handle.remove)
        logits = model(input_ids=ids[None], use_cache=False).logits[0, -1]
    return logits, torch.stack(list(alphas.values()))


def forward(model, form, parameters, sequences, c):
    """Loss, logits and mixture weights of the three sequences."""
    rows = [adapted_logits(model, form, parameters, ids, x) for ids, x in zip(sequences, c)]
    logits, alpha = (torch.stack(part) for part in zip(*rows))
    targets = torch.tensor([YES if label else NO for label in LABELS])
    return functional.cross_entropy(logits, targets), logits, alpha


def gradients(model, form, parameters, sequences, c):
    parameters = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    loss, logits, alpha = forward(model, form, parameters, sequences, c)
    loss.backward()
    return loss.detach(), logits.detach(), alpha.detach(), {n: p.grad for n, p in parameters.items()}


def inputs(case):
    """Everything random of a case."""
    form, settings = CASES[case]
    random = Random(1000 + list(CASES).index(case))
    model = random_model(settings, random)
    parameters = random_parameters(model, random)
    ids = random.integers((sum(LENGTHS),), settings["vocab_size"])
    return form, settings, model, parameters, ids, random.uniform((len(LENGTHS), WIDTH), 2.0)


def make(case):
    form, settings, model, parameters, ids, c = inputs(case)
    loss, logits, alpha, grads = gradients(model, form, parameters, ids.split(LENGTHS), c)
    tensors = {
        "ids": ids,
        "lens": torch.tensor(LENGTHS),
        "label": torch.tensor(LABELS),
        "c": c,
        "loss": loss.reshape(1),
        "logits": logits,
        "alpha": alpha,
    }
    for name, weight in model.named_parameters():
        tensors[f"backbone.{name}"] = weight.data
    for name, value in parameters.items():
        tensors[f"param.{name}"] = value
        tensors[f"grad.{name}"] = grads[name]
    adapter = {
        "experts": EXPERTS,
        "rank": RANK,
        "lora_alpha": LORA_ALPHA,
        "temperature": TEMPERATURE,
        "form": form,
        "gate_hidden": GATE_HIDDEN,
        "targets": [name.split(".")[1] for name in PROJECTIONS],
    }
    # One entry: safetensors writes several in any order.
    return tensors, {"case": json.dumps({"config": settings, "adapter": adapter})}


def check(case):
    """The committed file against what this script makes."""
    tensors, metadata = make(case)
    with safetensors.safe_open(path_of(case), "pt") as file:
        assert file.metadata() == metadata, f"{case}: other settings"
        assert sorted(file.keys()) == sorted(tensors), f"{case}: other tensors"
        worst = max(float((file.get_tensor(n) - t).abs().max()) for n, t in tensors.items())
    print(f"{'PASS' if worst <= 1e-6 else 'FAIL'}: {case}: max abs difference {worst:.3g}")
    return worst <= 1e-6


class DoubleNorm(torch.nn.Module):
    """RMSNorm without transformers' way through float32."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def verify(case):
    """The float32 gradients against those in float64, and these against central differences."""
    form, _, model, parameters, ids, c = inputs(case)
    sequences = ids.split(LENGTHS)
    single = gradients(model, form, parameters, sequences, c)
    model = model.double()
    # Eager attention takes its softmax in float32.
    model.set_attn_implementation("sdpa")
    for name, norm in list(model.named_modules()):
        if type(norm).__name__.endswith("RMSNorm"):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, DoubleNorm(norm))
    parameters = {name: value.double() for name, value in parameters.items()}
    loss, _, _, grads = gradients(model, form, parameters, sequences, c.double())
    rounding = max(
        float((single[3][name] - g).abs().max() / g.abs().max()) for name, g in grads.items()
    )
    smallest = min(float(g.abs().max()) for g in grads.values())
    step, worst = 1e-5, 0.0
    for name, grad in grads.items():
        # The entry of the largest gradient, and one in the middle.
        for at in {int(grad.abs().argmax()), grad.numel() // 2}:
            moved = []
            for sign in (1, -1):
                changed = parameters[name].clone()
                changed.view(-1)[at] += sign * step
                with torch.no_grad():
                    moved.append(forward(model, form, parameters | {name: changed}, sequences, c.double())[0])
            difference = float(moved[0] - moved[1]) / (2 * step)
            worst = max(worst, abs(difference - float(grad.view(-1)[at])) / float(grad.abs().max()))
    passed = rounding < 2e-5 and worst < 1e-6 and smallest > 1e-5
    print(
        f"{'PASS' if passed else 'FAIL'}: {case}: loss {float(loss):.6f} (float32 {float(single[0]):.6f}); "
        f"of a tensor's largest gradient: float32 is off by {rounding:.2g}, central differences by "
        f"{worst:.2g}; smallest of the largest {smallest:.2g}"
    )
    return passed


def main():
    parser = argparse.ArgumentParser(description="Golden values of each model family.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare the files with what this makes")
    mode.add_argument("--verify", action="store_true", help="gradients by float64 and differences")
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    results = []
    for case in arguments.cases or CASES:
        if arguments.check or arguments.verify:
            results.append((check if arguments.check else verify)(case))
        else:
            tensors, metadata = make(case)
            safetensors.torch.save_file(tensors, path_of(case), metadata)
            print(f"{path_of(case).name}: {path_of(case).stat().st_size} bytes")
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
