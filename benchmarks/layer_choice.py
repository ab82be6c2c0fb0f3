"""Is the layer that `longfocus evaluate layers` proposes the better one? Every layer after equal training.

    python benchmarks/layer_choice.py --output FOLDER [--data .runs/language/data] [--steps 150] [--base FOLDER]

A base without memory is trained from random weights (or --base is taken: any stock model), and its r_d is measured.
Then for every candidate the base is trained with crossbatch, with that layer as its only memory layer, for equally
many steps on the same documents. Loss on held-out documents, without memory, with the tokens before in memory, and with
other documents beside them, is what the layers are compared by. Every part is a folder of its own, and the same
command goes on where it was stopped. --data is a folder of `longfocus train language`: train, held_out, tokenizer.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longfocus.cli import main as cli
from longfocus.evaluation.layers_choice import propose, ranking
from longfocus.training.language_recipe import LanguageRecipe
from longfocus.training.recipe import Recipe
from longfocus.training.run import joined, train_recipe
from longfocus.training.trainer import TrainingStep

TOLD_STEPS = 10
OTHERS = ("1", "3", "7", "15", "31")


@dataclass(frozen=True)
class Found:
    """Of one layer after its training."""

    layer: int
    single: Sequence[dict[str, Any]]
    """Rows of `perplexity`: without memory, and with its own text."""
    multi: dict[str, Any]
    """The same with other documents beside it."""

    @property
    def loss(self) -> float:
        """With its own text and others in memory, the mean of both."""
        return (self.single[-1]["loss"] + self.multi["loss"]) / 2


def main() -> int:
    options = parsed()
    options.output.mkdir(parents=True, exist_ok=True)
    recipe = LanguageRecipe(
        layers=options.depth,
        base_steps=options.base_steps,
        steps=options.steps,
        rows=options.rows,
        windows=options.windows,
        window=options.window,
        seed=options.seed,
        rate=options.rate,
    )
    with joined(recipe.base(options.data)):
        base = options.base or options.output / "base"
        if options.base is None and not trained(stock(recipe, options.data), base, options):
            return 130
        before = measured_before(base, options)
        found = []
        layers = sorted({own["layer"] for own in before[0]["layers"]})
        for layer in options.layers or layers:
            own = candidate(recipe, layer, base, options)
            folder = options.output / f"layer_{layer}"
            if not trained(own, folder / "model", options):
                return 130
            found.append(measured_after(layer, folder, options))
    show(before, found)
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(".runs/language/data"))
    parser.add_argument("--base", type=Path, help="a stock model, instead of training one")
    parser.add_argument("--layers", type=int, nargs="*", help="candidates; all are the default")
    parser.add_argument("--depth", type=int, default=5, help="layers of the base")
    parser.add_argument("--base-steps", type=int, default=600, help="of 4096 tokens")
    parser.add_argument("--steps", type=int, default=150, help="of every candidate")
    parser.add_argument("--rows", type=int, default=32, help="windows of a step of a candidate")
    parser.add_argument("--windows", type=int, default=8, help="of one document in a step")
    parser.add_argument("--rate", type=float, default=2.5e-3, help="learning rate of a candidate")
    parser.add_argument("--positions", default="window_start", choices=("window_start", "none"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", default="4K", help="of the own text in memory")
    parser.add_argument("--others", default="16K", help="tokens of other documents beside it")
    parser.add_argument("--documents", type=int, default=20, help="held-out ones, at most")
    parser.add_argument("--window", type=int, default=256, help="tokens of a window")
    return parser.parse_args()


def stock(recipe: LanguageRecipe, data: Path) -> Recipe:
    """The base of `longfocus train language` as a model without memory: short windows, one after the other."""
    plain: dict[str, Any] = {"method": "plain", "memory_layers": (), "positions": None}
    return replace(recipe.base(data), **plain, contexts="paper", d="2")


def candidate(
    recipe: LanguageRecipe, layer: int, base: Path, options: argparse.Namespace
) -> Recipe:
    """The recipe of `fot` with another memory layer."""
    changes: dict[str, Any] = {
        "memory_layers": (layer,),
        "window": recipe.window,
        "positions": options.positions,
        "tokenizer": str(options.data / "tokenizer") if options.base is None else None,
    }
    return replace(recipe.variant("fot", options.data, base), **changes)


def trained(recipe: Recipe, folder: Path, options: argparse.Namespace) -> bool:
    """Train, or go on, and say whether it is finished."""

    def report(step: TrainingStep) -> None:
        if step.step % TOLD_STEPS == 0 or step.step == step.steps:
            told = f"{folder}: step {step.step}/{step.steps}, loss {step.loss:.3f}"
            print(f"{told}, {step.seconds_left / 60:.0f} minutes left", file=sys.stderr, flush=True)

    ended = train_recipe(recipe, folder, report=report, tokens=options.output / "tokens")
    return ended.ending != "interrupted"


def measured_before(base: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """r_d of the base, at all layers."""
    words = ["--tokens", "2K", "--others", *OTHERS, "--window", str(options.window)]
    words += ["--positions", options.positions]
    return evaluated("layers", base, options.output / "before", options, words)


def measured_after(layer: int, folder: Path, options: argparse.Namespace) -> Found:
    model, windows = folder / "model", ["--windows", "2"]
    own = ["--tokens", "0", options.tokens, *windows]
    multi = ["--documents", "multi", "--own", options.tokens, "--tokens", options.others, *windows]
    single = evaluated("perplexity", model, folder / "single", options, own)
    (beside,) = evaluated("perplexity", model, folder / "multi", options, multi)
    return Found(layer, single, beside)


def evaluated(
    name: str, model: Path, output: Path, options: argparse.Namespace, words: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of an experiment, which goes on with what is in its folder."""
    shared = ["--data", str(options.data / "held_out"), "--seeds", str(options.seed + 1)]
    shared += ["--max-documents", str(options.documents), "--device", "cpu"]
    command = ["evaluate", name, "--model", str(model), "--output", str(output), *shared, *words]
    if (code := cli.main(command)) != 0:
        sys.exit(code)
    return json.loads((output / "metrics.json").read_text())["rows"]


def show(before: Sequence[dict[str, Any]], found: Sequence[Found]) -> None:
    """A line for each layer, in the order of the loss that it has in the end."""
    proposal, ranked = propose(before), ranking(before)
    ranks = {own.layer: place for place, own in enumerate(ranked, 1)}
    masses = {own.layer: own.positive_mass for own in ranked}
    told = "losses in nats per token, changes with 95% intervals"
    print(f"\nr_d before training, at d = {proposal.measured_d}; {told}")
    print("layer   r_d  rank   no memory   own text    change (95%)              beside others")
    for own in sorted(found, key=lambda one: one.loss):
        without, with_own = own.single
        low, high = with_own["loss_change_interval"] or (float("nan"),) * 2
        mark = "  proposed" if own.layer in proposal.layers else ""
        print(
            f"{own.layer:5}  {masses[own.layer]:.1%}  {ranks[own.layer]:4}   {without['loss']:9.4f}  "
            f"{with_own['loss']:9.4f}   {with_own['loss_change']:+.4f} ({low:+.4f} to {high:+.4f})  "
            f"{own.multi['loss']:13.4f}{mark}"
        )
    order = [own.layer for own in sorted(found, key=lambda one: one.loss)]
    for layer in proposal.layers:
        if layer in order:
            place = order.index(layer) + 1
            print(f"Layer {layer}, which is proposed, is number {place} of {len(order)} by loss.")


if __name__ == "__main__":
    sys.exit(main())
