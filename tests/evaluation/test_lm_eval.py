"""lm-evaluation-harness: short tasks score as the plain model, long ones as the library's own sessions."""

import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import longfocus
from families import SIZES, random_model
from longfocus.evaluation import lm_eval as harness
from longfocus.evaluation.lm_eval import FocusLM
from small import KEPT, SPECIAL, WINDOW, byte_tokenizer, ids_of, small_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "lm_eval"
WIDE = 256
CONTEXT = "The owl saw nine keys. Where did it see them? It saw them"
NEW = 8

# importing the harness alone takes as long as many tests
pytestmark = pytest.mark.long


@cache
def plain_model() -> Any:
    """What `small_model` is without its memory."""
    sizes = {"vocab_size": 256 + len(SPECIAL), "num_hidden_layers": 3, "hidden_size": 24}
    model = random_model("llama", {**SIZES, **sizes, "intermediate_size": 24}, "sdpa")
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(autouse=True)
def without_a_list_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness runs `pip list` after every evaluation, for its report."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def plain(batch_size: int) -> HFLM:
    return HFLM(plain_model(), tokenizer=byte_tokenizer(), batch_size=batch_size)


def focused(batch_size: int = 1, window: int = WINDOW, **settings: Any) -> FocusLM:
    model = small_model((1,), window=window)
    return FocusLM(model, tokenizer=byte_tokenizer(), batch_size=batch_size, **settings)


def ask(kind: str, *questions: Any) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=question, idx=number)
        for number, question in enumerate(questions)
    ]


def generation(*prompts: str) -> list[Instance]:
    return ask("generate_until", *((p, {"until": [], "max_gen_toks": NEW}) for p in prompts))


@torch.no_grad()
def step_by_step(ids: list[int], continuation: list[int]) -> float:
    """The log-likelihood by one session, token by token."""
    session = longfocus.Session(small_model(), byte_tokenizer())
    memory, total, given = session.cache(), 0.0, torch.tensor([ids])
    for token in continuation:
        logits = session.model(given, past_key_values=memory).logits[0, -1]
        total += logits.double().log_softmax(-1)[token].item()
        given = torch.tensor([[token]])
    return total


@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_of_what_fits_the_window_gives_the_plain_models_numbers(batch_size: int) -> None:
    ends = [" here", " there, and there", ".", "x"]
    pairs = [(CONTEXT[:length], end) for length in (1, 20, 57) for end in ends]
    texts = [(CONTEXT[:length],) for length in (3, 57, 30, 1, 40)]
    prompts = generation(*(CONTEXT[start:] for start in (0, 9, 40, 2, 50)))
    for method, requests in {
        "loglikelihood": ask("loglikelihood", *pairs),
        "loglikelihood_rolling": ask("loglikelihood_rolling", *texts),
        "generate_until": prompts,
    }.items():
        expected = getattr(plain(batch_size), method)(requests)
        assert getattr(focused(batch_size, window=WIDE), method)(requests) == expected
        assert len(set(map(str, expected))) > 2


@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_of_a_short_task_gives_the_plain_models_scores(batch_size: int) -> None:
    own = TaskManager(include_path=EXAMPLES, include_defaults=False)
    found = []
    for model in (plain(batch_size), focused(batch_size, window=WIDE)):
        results = simple_evaluate(
            model,
            tasks=["longfocus_python_lines"],
            task_manager=own,
            bootstrap_iters=0,
        )
        samples = results["samples"]["longfocus_python_lines"]
        found.append((results["results"], [sample["resps"] for sample in samples]))
    assert found[0] == found[1]
    assert len(found[0][1]) == 12


def test_evaluation_of_a_long_context_scores_each_continuation_as_a_session_goes_on() -> None:
    ends = [" here", ".", " there, and there, and over there, too."]
    requests = ask("loglikelihood", *((CONTEXT, end) for end in ends), (CONTEXT[3:], ends[0]))
    found = focused().loglikelihood(requests)
    for request, (score, _) in zip(requests, found, strict=True):
        context, end = (ids_of(text).tolist() for text in request.args)
        assert score == pytest.approx(step_by_step(context, end), abs=1e-4)


@torch.no_grad()
def greedily(ids: list[int], begun: list[int]) -> list[int]:
    """Two windows of tokens: those begun with, and what greedy decoding writes behind them."""
    session, found = longfocus.Session(small_model(), byte_tokenizer()), list(begun)
    memory, given = session.cache(), ids
    for place in range(2 * WINDOW):
        logits = session.model(torch.tensor([given]), past_key_values=memory).logits[0, -1]
        if place >= len(begun):
            found.append(int(logits.argmax()))
        given = [found[place]]
    return found


def test_evaluation_says_whether_a_long_context_is_continued_greedily() -> None:
    context = ids_of(CONTEXT).tolist()
    likely = greedily(context, [])
    other = (likely[0] + 1) % 250
    asked = [likely, greedily(context, [other]), [*likely[:-1], likely[-1] ^ 1], likely[:1]]
    found = focused()._loglikelihood_tokens([(None, context, tokens) for tokens in asked])
    assert [greedy for _, greedy in found] == [True, False, False, True]


def test_evaluation_of_a_long_text_streams_it_through_the_memory() -> None:
    found = focused(batch_size=4).loglikelihood_rolling(
        ask("loglikelihood_rolling", (CONTEXT,), (CONTEXT[:5],), (CONTEXT[:40],))
    )
    for score, length in zip(found, (None, 5, 40), strict=True):
        ids = ids_of(CONTEXT[:length]).tolist()
        bos = byte_tokenizer().bos_token_id
        assert score == pytest.approx(step_by_step([bos], ids), abs=1e-3)


@pytest.mark.parametrize("memory", [{}, {"search": "exact", "top_k": 2}])
def test_evaluation_generates_for_a_padded_batch_what_a_session_answers(memory: Any) -> None:
    prompts = [CONTEXT, CONTEXT[7:], "x" + CONTEXT[8:], CONTEXT[50:], CONTEXT[20:]]
    session = longfocus.Session(small_model(), byte_tokenizer(), **memory)
    end = byte_tokenizer().eos_token_id
    expected = [session.ask(prompt, NEW, eos_token_id=end).text for prompt in prompts]
    assert focused(batch_size=4, **memory).generate_until(generation(*prompts)) == expected


def test_evaluation_uses_the_memory_that_is_asked_for() -> None:
    requests = ask("loglikelihood", (CONTEXT, " here"))
    scores = [
        focused(**memory).loglikelihood(requests)[0][0]
        for memory in ({}, {"search": "exact", "top_k": 1}, {"memory_dtype": "int8"})
    ]
    assert len(set(scores)) == 3


def test_evaluation_cuts_nothing_away_unless_max_length_says_so() -> None:
    kept = 2 * WINDOW
    requests = ask("loglikelihood", (CONTEXT, " here"))
    whole, cut = focused(), focused(max_length=kept)
    ids, end = ids_of(CONTEXT).tolist(), ids_of(" here").tolist()
    assert whole.loglikelihood(requests) != cut.loglikelihood(requests)
    (score, _), *_ = cut.loglikelihood(requests)
    expected = step_by_step(ids[-(kept + 1 - len(end)) :], end)
    assert score == pytest.approx(expected, abs=1e-4)


def test_evaluation_reads_a_long_context_with_the_window_prefix() -> None:
    model = focused(batch_size=4, window_prefix="bos")
    session = longfocus.Session(small_model(), byte_tokenizer(), window_prefix="bos")
    ids = ids_of(CONTEXT)
    session.read(ids[:-KEPT])
    (answer,) = session.ask([ids[-KEPT:].tolist()], NEW)
    assert model.generate_until(generation(CONTEXT, CONTEXT[30:]))[0] == answer.text
    requests = [(None, ids.tolist(), list(answer.token_ids))]
    assert model._loglikelihood_tokens(requests)[0][1]
    assert focused().generate_until(generation(CONTEXT)) != [answer.text]


def test_evaluation_attaches_a_memory_to_a_model_that_was_saved_without(tmp_path: Path) -> None:
    plain_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    given = {"pretrained": str(tmp_path), "window": WINDOW, "device": "cpu"}
    harness.register()
    made = get_model("longfocus").create_from_arg_obj({**given, "memory_layers": "0+1"})
    assert made.model.focus.config.memory_layers == (0, 1)
    with pytest.raises(longfocus.LongFocusError, match="Add both memory_layers and window"):
        FocusLM(**given)
    with pytest.raises(longfocus.LongFocusError, match="Join them by"):
        FocusLM(**given, memory_layers="0;1")
    with pytest.raises(longfocus.LongFocusError, match="a memory of its own"):
        FocusLM("code", window=WINDOW)


def test_evaluation_command_shows_what_is_wrong_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        get_model("longfocus")(pretrained="code", window=WINDOW, device="cpu")

    monkeypatch.setattr(harness, "cli_evaluate", run)
    assert harness.main() == 2
    assert "a memory of its own" in capsys.readouterr().err


def test_evaluation_example_finds_pass_keys_beyond_the_window_of_the_shipped_model() -> None:
    # with this seed both stand in the first half
    given = {"pretrained": "code", "max_seq_lengths": [512], "samples": 2, "seed": 3}
    own = TaskManager(include_path=EXAMPLES, include_defaults=False, metadata=given)
    found = []
    for limit in (None, WIDE):
        model = FocusLM("code", device="cpu", batch_size=2, max_length=limit)
        tasks = ["longfocus_passkey"]
        results = simple_evaluate(model, tasks=tasks, task_manager=own, bootstrap_iters=0)
        found.append(results["results"]["longfocus_passkey"]["found at 512,none"])
    assert found == [1.0, 0.0]


@pytest.mark.long
def test_evaluation_commands_of_the_page_that_need_no_download_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = EXAMPLES.parents[1]
    page = (root / "docs" / "lm_eval.md").read_text(encoding="utf-8").replace("\\\n", " ")
    start = "python -m longfocus.evaluation.lm_eval "
    commands = [line.removeprefix(start) for line in page.splitlines() if line.startswith(start)]
    local = [command for command in commands if "models/code" in command or "=code" in command]
    assert len(local) == len(commands) - 1 == 3
    monkeypatch.chdir(root)
    # RULER would download what its tasks with words do not need
    monkeypatch.setattr("nltk.download", lambda name: False)
    for command in local:
        words = shlex.split(command.replace("samples=20", "samples=1"))
        monkeypatch.setattr(sys, "argv", ["lm_eval", *words, "--device", "cpu"])
        assert harness.main() == 0
        printed = capsys.readouterr().out
        tasks = [word for word in words if word.startswith(("longfocus_", "niah_"))]
        assert tasks
        assert all(f"|{task}" in printed for task in tasks)
