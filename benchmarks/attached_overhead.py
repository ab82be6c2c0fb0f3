"""What an empty memory costs: short-prompt generation with memory attached against the plain model.

    python benchmarks/attached_overhead.py [--json FILE]

Both sides run in one process, turn by turn, on the same weights (random: only the time matters); the ratio of the
medians is printed. The model is a Llama of 8 layers and hidden size 512.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import longfocus

PROMPT, NEW = 100, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the numbers here")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plain, attached = model(), model()
    longfocus.attach(attached, longfocus.FocusConfig(memory_layers=(3, 5), window=512))
    ids = torch.randint(0, 1000, (1, PROMPT))
    assert torch.equal(generate(plain, ids), generate(attached, ids)), "not the same computation"
    times: dict[str, list[float]] = {"plain": [], "attached": []}
    for repeat in range(options.repeats):
        order = [("plain", plain), ("attached", attached)]
        for name, side in order if repeat % 2 else reversed(order):
            start = time.perf_counter()
            generate(side, ids)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = medians["attached"] / medians["plain"]
    for name, seconds in medians.items():
        print(f"{name:9} {1000 * seconds / NEW:.2f} ms per token")
    print(f"attached / plain = {ratio:.3f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"ratios": {"attached_vs_plain": ratio}, "seconds": times}, file)


def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=512,
    )
    made: Any = LlamaForCausalLM(config)
    return made.to(torch.bfloat16).eval()


def generate(side: Any, ids: torch.Tensor) -> torch.Tensor:
    return side.generate(
        ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )


if __name__ == "__main__":
    main()
