"""`longfocus train scratch | continue | instruct` from a folder of texts to a model that answers from memory."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import longfocus
from longfocus.cli import train_model
from longfocus.cli.main import main

SMALL = ["--cpu", "--batch-size", "4", "--seed", "3"]
SCRATCH = ["--layers", "3", "--hidden-size", "64", "--heads", "2", "--kv-heads", "1"]
SCRATCH += ["--head-dim", "32", "--window", "32", "--vocabulary", "300"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(6):
        lines = [f"Line {line} of text {number} says {line * 7 % 11}." for line in range(40)]
        (folder / f"{number}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def base(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model from random weights that was trained for three steps."""
    output = tmp_path_factory.mktemp("models") / "base"
    assert train("scratch", texts, output, *SCRATCH, "--max-steps", "3") == 0
    return output


def train(kind: str, data: Path, output: Path, *more: str) -> int:
    return main(["train", kind, "--data", str(data), "--output", str(output), *SMALL, *more])


def steps(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_scratch_then_continue_with_all_weights_then_read_and_ask(
    texts: Path, base: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    code = train("continue", texts, output, "--model", str(base), "--max-steps", "2", "--d", "1,2")
    assert code == 0
    assert [line["step"] for line in steps(output)] == [1, 2]
    model, tokenizer = longfocus.from_pretrained(output), longfocus.tokenizer(output)
    before = longfocus.from_pretrained(base).state_dict()
    assert any(not torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    session = longfocus.Session(model, tokenizer)
    session.read(texts / "0.txt", progress=False)
    assert session.tokens > model.focus.config.window
    assert session.ask("Line 3 of text 0 says", max_new_tokens=2).text


def test_continue_with_lora_trains_adapters_only_and_merges_them(
    texts: Path, base: Path, tmp_path: Path
) -> None:
    more = ["--model", str(base), "--max-steps", "2", "--lora-rank", "2", "--learning-rate", "0.1"]
    assert train("continue", texts, tmp_path / "out", *more) == 0
    after, before = (longfocus.from_pretrained(place) for place in (tmp_path / "out", base))
    pairs = list(zip(after.state_dict().items(), before.state_dict().items(), strict=True))
    assert all(one[0] == other[0] for one, other in pairs)
    changed = {one[0] for one, other in pairs if not torch.equal(one[1], other[1])}
    assert changed
    assert all("proj" in name for name in changed)


def test_a_stock_model_gets_its_memory_by_the_options(
    texts: Path, base: Path, tmp_path: Path
) -> None:
    stock = longfocus.detach(longfocus.from_pretrained(base))
    stock.save_pretrained(tmp_path / "stock")
    longfocus.tokenizer(base).save_pretrained(tmp_path / "stock")
    more = ["--model", str(tmp_path / "stock"), "--memory-layers", "1", "--window", "16"]
    more += ["--contexts", "1/4(0,0) 1/4(1,0) 1/4(2,0) 1/4(3,0)", "--positions", "none"]
    assert train("continue", texts, tmp_path / "out", *more, "--max-steps", "1") == 0
    config = longfocus.from_pretrained(tmp_path / "out").focus.config
    assert (config.memory_layers, config.window, config.positions) == ((1,), 16, "none")


@pytest.mark.parametrize("method", ["plain", "transformer_xl", "real_memory"])
def test_every_baseline_is_one_option(method: str, texts: Path, base: Path, tmp_path: Path) -> None:
    more = ["--model", str(base), "--method", method, "--max-steps", "2"]
    assert train("continue", texts, tmp_path / "out", *more) == 0
    assert len(steps(tmp_path / "out")) == 2


def test_without_max_steps_every_token_is_read_once(
    texts: Path, base: Path, tmp_path: Path
) -> None:
    assert train("continue", texts, tmp_path / "out", "--model", str(base)) == 0
    tokenizer = longfocus.tokenizer(base)
    tokens = sum(len(tokenizer(path.read_text())["input_ids"]) + 1 for path in texts.glob("*.txt"))
    assert len(steps(tmp_path / "out")) == -(-tokens // (4 * 32))


def test_instruct_trains_on_answers(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "chats.jsonl"
    turns = [
        [
            {"role": "user", "content": f"What is {n}? " + "Think. " * n},
            {"role": "assistant", "content": f"It is {n}."},
        ]
        for n in range(8)
    ]
    data.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    more = ["--model", str(base), "--max-steps", "3"]
    assert train("instruct", data, tmp_path / "out", *more) == 0
    assert len(steps(tmp_path / "out")) == 3
    # the base has no chat template, and the result keeps the one it was trained with
    assert longfocus.tokenizer(tmp_path / "out").chat_template is not None


def test_a_termination_leaves_a_checkpoint_and_its_number_in_the_exit_code(
    texts: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--model", str(base), "--max-steps", "6"]
    assert train("continue", texts, tmp_path / "whole", *more) == 0
    describe = train_model.describe

    def stop(step: Any) -> str:
        if step.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return describe(step)

    with monkeypatch.context() as patch:
        patch.setattr(train_model, "describe", stop)
        assert train("continue", texts, tmp_path / "parts", *more) == 128 + signal.SIGTERM
    assert not (tmp_path / "parts" / "config.json").exists()
    assert train("continue", texts, tmp_path / "parts", *more) == 0
    for one, other in zip(steps(tmp_path / "whole"), steps(tmp_path / "parts"), strict=True):
        assert one["loss"] == other["loss"]
    # finished: nothing is done again
    assert train("continue", texts, tmp_path / "parts", *more) == 0
    assert len(steps(tmp_path / "parts")) == 6


def test_show_plan_draws_who_sees_whom(
    texts: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model", str(base), "--show-plan", "--d", "2"]
    assert train("continue", texts, tmp_path / "out", *more) == 0
    picture = capsys.readouterr().out
    assert "+#|-." in picture
    assert "-.|+#" in picture
    assert not (tmp_path / "out").exists()


def test_a_dry_run_that_counts_tokens_keeps_them_for_the_training(
    texts: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model", str(base)]
    assert train("continue", texts, tmp_path / "out", *more, "--dry-run") == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [f"tokenising {texts.name}  0%", f"tokenising {texts.name}  100%"]
    assert train("continue", texts, tmp_path / "out", *more) == 0
    assert "tokenising" not in capsys.readouterr().err


def test_dry_run_says_what_is_trained_and_trains_nothing(
    texts: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = longfocus.from_pretrained(base)
    more = ["--model", str(base), "--max-steps", "10", "--lora-rank", "2", "--dry-run"]
    assert train("continue", texts, tmp_path / "out", *more) == 0
    said = capsys.readouterr().out
    assert f"{model.num_parameters():,} parameters" in said
    assert "LoRA of rank 2" in said
    assert f"{4 * 32:,} a step" in said
    assert "MiB per process" in said
    assert "seconds (estimate" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--d", "5"], "d must lie between 1 and the number of documents, 2"),
        (["--contexts", "1/2(1,0) 1/2(1,0)"], "windows of its own come before it"),
        (["--contexts", "paper(w=2)"], "A batch of 4 rows cannot hold documents of 3 windows"),
        (["--contexts", "papr"], "is not a plan of contexts"),
        (["--d", "many"], "is not a schedule of d"),
        (["--window", "4096"], "longer than the model's positions"),
        (["--lora-rank", "2", "--quantize", "4bit"], "need the package bitsandbytes and a GPU"),
        (["--quantize", "4bit"], "Give --lora-rank"),
        (["--fsdp"], "on GPUs only"),
        (["--report-to", "notepad"], "'notepad' is not a tracker"),
        (["--scheduler", "reduce_lr_on_plateau"], "scheduler='reduce_lr_on_plateau' is not known"),
        (["--learning-rate", "-1"], "learning_rate must not be negative"),
        (["--positions", "true", "--memory-layers", "1", "--d", "2"], None),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    more: list[str],
    reason: str | None,
    texts: Path,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if reason is None:
        stock = longfocus.detach(longfocus.from_pretrained(base))
        stock.save_pretrained(tmp_path / "model")
        longfocus.tokenizer(base).save_pretrained(tmp_path / "model")
        base, reason = tmp_path / "model", "has negatives"
    given = ["--model", str(base), "--max-steps", "2", *more]
    assert train("continue", texts, tmp_path / "out", *given) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_tokenizer_of_another_vocabulary_is_refused(
    texts: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model", str(base), "--tokenizer", "code", "--max-steps", "1"]
    assert train("continue", texts, tmp_path / "out", *more) == 2
    assert "2048" in capsys.readouterr().err


def test_a_first_start_that_failed_does_not_bind_the_corrected_one(
    texts: Path, base: Path, tmp_path: Path
) -> None:
    more = ["--model", str(base), "--max-steps", "1"]
    assert train("continue", texts, tmp_path / "out", *more, "--d", "5") == 2
    assert train("continue", texts, tmp_path / "out", *more, "--d", "2") == 0


def test_sizes_and_times_are_told_in_units_that_show_them() -> None:
    assert train_model.size(107_374_183) == "0.1 GiB"
    assert train_model.size(107_374_182) == "102.4 MiB"
    assert train_model.duration(89.6) == "90 seconds"
    assert train_model.duration(90) == "2 minutes"


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_missing_data_are_refused_before_the_model_is_looked_for(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", "nobody/nothing", "--max-steps", "1", *more]
    assert train("continue", tmp_path / "nowhere", tmp_path / "out", *given) == 2
    assert "There is no file or folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_model_is_refused_before_anything_is_made(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(tmp_path / "nothing"), "--max-steps", "1"]
    assert train("continue", texts, tmp_path / "out", *given) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_vocabulary_that_the_data_do_not_fill_is_said(
    texts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for vocabulary, found in ((4000, 1), (258, 0)):
        more = [*SCRATCH[:-1], str(vocabulary), "--max-steps", "1"]
        assert train("scratch", texts, tmp_path / str(vocabulary), *more) == 0
        size = longfocus.from_pretrained(tmp_path / str(vocabulary)).config.vocab_size
        told = [record.getMessage() for record in caplog.records]
        expected = f"has {size} entries, fewer than --vocabulary {vocabulary}"
        assert len(told) == found
        assert all(expected in message for message in told)
        caplog.clear()


def test_data_without_text_are_refused_with_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for name, content in {"a.bin": b"\0", "b.txt": b"", ".c": b"c"}.items():
        (tmp_path / "data" / name).write_bytes(content)
    assert train("scratch", tmp_path / "data", tmp_path / "out", "--max-steps", "1") == 2
    said = capsys.readouterr().err
    assert "2 left out" in said
    assert "a.bin (not UTF-8 text)" in said
    assert "b.txt (no text)" in said
    assert "1 hidden" in said


def test_an_empty_folder_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    more = ["--model", str(base), "--max-steps", "1"]
    assert train("continue", tmp_path / "empty", tmp_path / "out", *more) == 2
    assert "empty" in capsys.readouterr().err
