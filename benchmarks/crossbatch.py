"""What crossbatch attention costs: against the gathered formula, and a whole step against plain language modelling.

    python benchmarks/crossbatch.py [--json FILE] [--device cuda]

1. Memory attention of 64 previous and 64 current windows of 256 tokens, every current window seeing 64 previous ones
   (d = 64), forward and backward. The gathered formula copies the contexts of every row, as a straightforward
   implementation does, and takes one softmax over own window and contexts; rows that see nobody use torch's own
   causal attention on both sides. Peak extra memory is taken in a process of its own for each side.
2. A training step (forward, backward, AdamW) at d = 2 against a plain causal-LM step of the same model and tokens.

`ratios`: `memory_d64_vs_gathered` = our extra peak memory / theirs, `speed_d64_vs_gathered` = their time / ours,
`step_d2_vs_plain` = our time / theirs. Both sides have the same type and threads, and run turn by turn.
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

import longfocus
from longfocus.core import crossbatch_attention

DOCUMENTS, D, LENGTH, HEADS, DIM = 64, 64, 256, 2, 64
TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SIDES = ("crossbatch", "gathered")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="write the numbers here")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", nargs=2, metavar=("SIDE", "TYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        side, dtype = options.memory_of
        print(peak_bytes(side, dtype, options.device))
        return
    found: dict[str, Any] = {"settings": vars(options), "attention": {}}
    for dtype in TYPES:
        found["attention"][dtype] = compare_attention(dtype, options)
    found["step_d2"] = compare_step(options)
    chosen = found["attention"]["bfloat16"]
    found["ratios"] = {
        "memory_d64_vs_gathered": chosen["crossbatch"]["bytes"] / chosen["gathered"]["bytes"],
        "speed_d64_vs_gathered": chosen["gathered"]["seconds"] / chosen["crossbatch"]["seconds"],
        "step_d2_vs_plain": found["step_d2"]["crossbatch"] / found["step_d2"]["plain"],
    }
    show(found)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)


def inputs(dtype: str, device: str) -> tuple[list[Tensor], Tensor]:
    """Query, key and value of the whole batch, with gradients, and the paper's plan."""
    generator = torch.Generator().manual_seed(0)
    shape = (2 * DOCUMENTS, HEADS, LENGTH, DIM)
    tensors = [torch.randn(shape, generator=generator) for _ in range(3)]
    plan = longfocus.paper_plan(DOCUMENTS, d=D)
    return [t.to(device, TYPES[dtype]).requires_grad_() for t in tensors], plan.to(device)


def gathered(query: Tensor, key: Tensor, value: Tensor, plan: Tensor) -> Tensor:
    """The same attention by copying the contexts of every row that has some."""
    sees = (plan >= 0).any(1)
    alone = functional.scaled_dot_product_attention(
        query[~sees], key[~sees], value[~sees], is_causal=True
    )
    listed = plan[sees]
    keys, values = (
        torch.cat([own[sees], own[listed].transpose(1, 2).flatten(2, 3)], 2) for own in (key, value)
    )
    scores = query[sees] @ keys.mT * DIM**-0.5
    ahead = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=query.device).triu(1)
    hidden = functional.pad(ahead, (0, keys.shape[2] - LENGTH))
    together = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values
    return torch.cat([alone, together])


def attention(side: str, tensors: list[Tensor], plan: Tensor) -> None:
    """Forward and backward of one side."""
    run: Callable[..., Tensor] = crossbatch_attention if side == "crossbatch" else gathered
    run(*tensors, plan).float().square().sum().backward()


def peak_bytes(side: str, dtype: str, device: str) -> int:
    """The greatest memory of one forward and backward pass beyond inputs and gradients."""
    tensors, plan = inputs(dtype, device)
    small = [t.detach()[:4, :, :8].clone().requires_grad_() for t in tensors]
    # libraries that are loaded at first use
    query, key, value = small
    crossbatch_attention(query, key, value, plan[:4]).sum().backward()
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        attention(side, tensors, plan)
        return torch.cuda.max_memory_allocated() - before
    before = reset_peak()
    attention(side, tensors, plan)
    return resident_peak() - before


def reset_peak() -> int:
    """Forget earlier peaks of this process, where the system can; returns the peak from here on."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident_peak()


def resident_peak() -> int:
    """The most bytes that this process has held in memory."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    # bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def compare_attention(dtype: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds (median) and peak extra bytes of both sides, after checking that they agree."""
    tensors, plan = inputs(dtype, options.device)
    with torch.no_grad():
        query, key, value = tensors
        both = [run(query, key, value, plan) for run in (crossbatch_attention, gathered)]
        # rows without contexts come first in both
        torch.testing.assert_close(both[0].float(), both[1].float(), atol=0.03, rtol=0.03)
        del both
    seconds = timed(
        {side: lambda side=side: attention(side, tensors, plan) for side in SIDES}, options
    )
    command = [sys.executable, __file__, "--device", options.device]
    command += ["--threads", str(options.threads), "--memory-of"]
    memory = {
        side: int(subprocess.run([*command, side, dtype], capture_output=True, check=True).stdout)
        for side in SIDES
    }
    return {side: {"seconds": seconds[side], "bytes": memory[side]} for side in SIDES}


def compare_step(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a training step with d = 2 and of a plain one, on the same tokens."""
    rows, documents = 32, 16
    ids = torch.randint(0, 2048, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    ids = ids.to(options.device)
    plan = longfocus.paper_plan(documents, d=2).to(options.device)
    attached = language_model().to(options.device)
    longfocus.attach(attached, longfocus.FocusConfig(memory_layers=(3, 5), window=LENGTH))
    sides = {
        "crossbatch": training_step(attached, ids, additional_contexts=plan),
        "plain": training_step(language_model().to(options.device), ids),
    }
    return timed(sides, options)


def language_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
    )
    return LlamaForCausalLM(config)


def training_step(model: Any, ids: Tensor, **more: Any) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        with torch.autocast(ids.device.type, torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False, **more).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(sides: dict[str, Callable[[], None]], options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of every side, turn by turn after one turn that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(options.repeats + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if options.device != "cpu":
                torch.cuda.synchronize()
            if repeat:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def show(found: dict[str, Any]) -> None:
    print(
        f"{DOCUMENTS} current and previous windows of {LENGTH} tokens, d = {D}, forward and backward"
    )
    for dtype, sides in found["attention"].items():
        for side, numbers in sides.items():
            print(
                f"  {dtype:9} {side:11} {numbers['seconds']:7.3f} s "
                f"{numbers['bytes'] / 2**20:8,.0f} MiB extra"
            )
    step = found["step_d2"]
    print(f"step at d = 2: {step['crossbatch']:.3f} s, plain {step['plain']:.3f} s")
    for name, ratio in found["ratios"].items():
        print(f"{name} = {ratio:.3f}")


if __name__ == "__main__":
    main()
