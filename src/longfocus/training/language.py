"""Language models of source code that show what memory does: a base, and from it one variant per method.

    OUTPUT/data/         what is trained on and what is held out (`language_data.py`), or --data-folder
    OUTPUT/base/         short windows, the memory never looked into
    OUTPUT/fot/ ...      the variants (`language_recipe.py`): models with recipe.json, metrics.jsonl, training.json
    OUTPUT/summary.json  steps, tokens, processor seconds and last losses of all that are finished

Every model is a training by `train_recipe`, so the same call goes on where it was stopped. Checkpoints of a finished
model are removed.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from longfocus.training.language_data import TOKENS, Prepare, prepare_language_data
from longfocus.training.language_recipe import ALL_VARIANTS, VARIANTS, LanguageRecipe, Variant
from longfocus.training.output import DATA_FOLDER, MODEL_FILE, open_output
from longfocus.training.ranks import first
from longfocus.training.recipe import Recipe
from longfocus.training.run import train_recipe
from longfocus.training.saving import SUMMARY_FILE
from longfocus.training.trainer import METRICS_FILE, Ended, TrainingStep

BASE = "base"
ALL_FILE = "summary.json"
LAST_STEPS = 50
"""Steps whose mean loss the summary tells."""

Report = Callable[[str, TrainingStep], None]
"""Called with the model's name after every step."""


def train_language(
    recipe: LanguageRecipe,
    output: Path,
    *,
    only: Sequence[Variant] = VARIANTS,
    data: Path | None = None,
    report: Report = lambda name, step: None,
    prepare: Prepare = lambda what, done, total: None,
) -> Ended:
    """Make the data, the base and the variants, going on where an earlier call stopped.

    Several seeds may share `data`. What is finished is left as it is.
    """
    first(lambda: open_output(output, recipe))
    data = data or output / DATA_FOLDER
    first(lambda: prepare_language_data(data, recipe, prepare))
    trainings: dict[str, Recipe] = {BASE: recipe.base(data)}
    for name in ALL_VARIANTS:
        if name in only:
            trainings[name] = recipe.variant(name, data, output / BASE)
    ended = Ended("finished", None, 0)
    for name, training in trainings.items():
        ended = train_recipe(
            training,
            output / name,
            report=lambda step, name=name: report(name, step),
            prepare=prepare,
            tokens=data / TOKENS,
        )
        if ended.ending == "interrupted":
            return ended
        first(lambda name=name: _finish(output, name))
    return ended


def _finish(output: Path, name: str) -> None:
    shutil.rmtree(output / name / "checkpoints", ignore_errors=True)
    names = [name for name in (BASE, *ALL_VARIANTS) if (output / name / MODEL_FILE).exists()]
    told = {name: _summary(output / name) for name in names}
    temporary = output / "summary.tmp"
    temporary.write_text(json.dumps(told, indent=1) + "\n")
    temporary.replace(output / ALL_FILE)


def _summary(model: Path) -> dict[str, Any]:
    summary = json.loads((model / SUMMARY_FILE).read_text())
    lines = (model / METRICS_FILE).read_text().splitlines()[-LAST_STEPS:]
    losses = [json.loads(line)["loss"] for line in lines]
    return summary | {f"loss of the last {LAST_STEPS} steps": sum(losses) / len(losses)}
