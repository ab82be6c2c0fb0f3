"""A model of 100M parameters through `longfocus train continue`: time, memory, and that the result reads and answers.

    python benchmarks/continue_100m.py [--data docs] [--steps 20]

Weights are random (only cost matters): a Llama of 12 layers and hidden size 768 with the code model's tokenizer.
Trained with LoRA and with all weights, each in a process of its own; then loaded, given a text to read, and asked.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import longfocus

KINDS = {"LoRA": ["--lora-rank", "16", "--learning-rate", "1e-4"], "all weights": []}
WATCH = """
import resource, sys
from longfocus.cli.main import main
code = main(sys.argv[1:])
unit = 1 if sys.platform == "darwin" else 1024
print("peak", unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / "docs")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        made: Any = model()
        print(f"{made.num_parameters():,} parameters")
        made.save_pretrained(base)
        longfocus.tokenizer("code").save_pretrained(base)
        for kind, more in KINDS.items():
            output = Path(folder) / kind
            train(base, output, options, kind, more)
            use(output, options.data)


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config)


def train(
    base: Path, output: Path, options: argparse.Namespace, kind: str, more: list[str]
) -> None:
    words = ["train", "continue", "--model", str(base), "--data", str(options.data)]
    words += ["--output", str(output), "--max-steps", str(options.steps), "--cpu", *more]
    words += ["--window", "512", "--batch-size", "4"]
    started = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-c", WATCH, *words], stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, peak = time.perf_counter() - started, int(ended.stdout.split()[-1])
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    speed = sum(line["tokens_per_second"] for line in lines[1:]) / max(len(lines) - 1, 1)
    print(
        f"{kind}: {len(lines)} steps, {seconds:.0f} s in all, {speed:,.0f} tokens/s, "
        f"peak {peak / 2**30:.1f} GiB, loss {lines[0]['loss']:.2f} to {lines[-1]['loss']:.2f}"
    )


def use(output: Path, data: Path) -> None:
    session = longfocus.Session(longfocus.from_pretrained(output), longfocus.tokenizer(output))
    text = next(iter(sorted(data.glob("*.*"))))
    session.read(text, progress=False)
    answer = session.ask("What is it about?", max_new_tokens=4)
    print(f"  read {session.tokens:,} tokens of {text.name} and answered {answer.text!r}")


if __name__ == "__main__":
    main()
