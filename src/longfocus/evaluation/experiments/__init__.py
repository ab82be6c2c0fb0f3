"""The experiments of `longfocus evaluate`: one file each in this folder, and a line here. Imports no torch."""

from importlib import import_module

from longfocus.evaluation.experiment import Experiment

EXPERIMENTS = {
    "dictionary": "the paper's lookup task: words defined in the memory, asked for",
    "passkey": "a number hidden in a long text: the paper's prompt, or many in source code",
}
"""What each is, by its name, which is that of its file."""


def experiment(name: str) -> Experiment:
    return import_module(f"{__name__}.{name}").EXPERIMENT
