"""An exported adapter, loaded by Hugging Face PEFT, gives the logits this project computed.

Run by hand; needs the network once, and room for torch (PyPI's brings CUDA along; the CPU is enough):

    python3 -m venv venv
    venv/bin/pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
    venv/bin/python trainer/tests/peer/check_peft.py BACKBONE_DIR PEFT_DIR...

A PEFT_DIR is what `reclora-launch export` (or the stage `export`) wrote: its example.json holds the
tokens of a prompt and the logits of the whole vocabulary after them; with a trained head also those of no
and yes, which head.safetensors gives from the last hidden state. Everything is computed in float32.
One line for each PEFT_DIR, PASS or FAIL; exit code 1 when any logit is more than 1e-4 away, or when the
adapter changes nothing.
"""

import json
import pathlib
import sys

import peft
import safetensors.torch
import torch
import transformers

TOLERANCE = 1e-4


def last_logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0, -1]


def answer_logits(model, tokens, head):
    with torch.no_grad():
        output = model(input_ids=torch.tensor([tokens]), output_hidden_states=True)
    logits = head["head.weight"] @ output.hidden_states[-1][0, -1] + head["head.bias"]
    # One output is the logit of yes against 0.
    return logits if len(logits) == 2 else torch.cat([torch.zeros(1), logits])


def check(backbone_dir, peft_dir):
    example = json.loads((pathlib.Path(peft_dir) / "example.json").read_text())
    expected = torch.tensor(example["logits"], dtype=torch.float32)
    backbone = transformers.LlamaForCausalLM.from_pretrained(backbone_dir, dtype=torch.float32).eval()
    bare = last_logits(backbone, example["tokens"])
    adapted = peft.PeftModel.from_pretrained(backbone, peft_dir).eval()
    logits = last_logits(adapted, example["tokens"])
    difference = (logits - expected).abs().max().item()
    effect = (logits - bare).abs().max().item()
    head_path = pathlib.Path(peft_dir) / "head.safetensors"
    of_head = ""
    if head_path.exists():
        head = safetensors.torch.load_file(head_path)
        answers = answer_logits(adapted, example["tokens"], head)
        of_answers = (answers - torch.tensor(example["answer_logits"])).abs().max().item()
        of_head = f", of the head's {of_answers:.3g}"
        difference = max(difference, of_answers)
    passed = difference <= TOLERANCE and effect > TOLERANCE
    print(
        f"{'PASS' if passed else 'FAIL'}: {peft_dir}: {len(example['tokens'])} tokens, "
        f"{len(expected)} logits, max abs difference {difference:.3g}{of_head}, "
        f"largest effect of the adapter {effect:.3g}"
    )
    return passed


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    results = [check(sys.argv[1], peft_dir) for peft_dir in sys.argv[2:]]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
