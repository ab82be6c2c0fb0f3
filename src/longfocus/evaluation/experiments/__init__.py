"""The experiments of `longfocus evaluate`: one file each in this folder, and a line here. Imports no torch."""

from importlib import import_module

from longfocus.evaluation.experiment import Experiment

EXPERIMENTS = {
    "dictionary": "the paper's lookup task: words defined in the memory, asked for",
    "passkey": "a number hidden in a long text: the paper's prompt, or many in source code",
    "needle": "sentences hidden at several depths of any text, by length and depth",
    "fewshot": "labelled examples in memory, others asked for: TREC, WebQS, any file",
    "retrieval": "which keys of the memory the tokens of a text look at, and how sharply",
    "perplexity": "loss of held-out documents by what is in memory: their own text, or others too",
    "benefit": "whether a memory helps: beside truncated and full context and retrieval, on one budget",
    "layers": "which layers should get a memory, and which d to train with, before any training",
    "distraction": "share of the attention that falls on the own document among others in memory",
}
"""What each is, by its name, which is that of its file."""


def experiment(name: str) -> Experiment:
    return import_module(f"{__name__}.{name}").EXPERIMENT
