"""The public face is small, sorted and whole, and importing it costs nothing."""

import subprocess
import sys

import pytest

import longfocus


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_is_sorted_and_small() -> None:
    assert longfocus.__all__ == sorted(set(longfocus.__all__))
    assert len(longfocus.__all__) <= 15


@pytest.mark.parametrize("name", longfocus.__all__)
def test_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(longfocus, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(longfocus)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        longfocus.nothing_like_it  # noqa: B018


def test_import_brings_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'rich', 'tyro'}"
    assert run_python(f"import sys, longfocus; print({heavy} & set(sys.modules))") == "set()"


def test_config_and_errors_bring_no_torch() -> None:
    code = "import sys; from longfocus import FocusConfig, LongFocusError"
    assert run_python(f"{code}; print('torch' in sys.modules)") == "False"


def test_core_is_an_attribute_after_import_longfocus() -> None:
    code = "import longfocus; print(longfocus.core.crossbatch_attention.__name__)"
    assert run_python(code) == "crossbatch_attention"


def test_training_is_an_attribute_and_its_rows_need_no_torch() -> None:
    code = "import sys, longfocus; print(longfocus.training.document_rows.__name__, 'torch' in sys.modules)"
    assert run_python(code) == "document_rows False"
    assert (
        run_python("from longfocus.training import linear_rows; print(linear_rows.__name__)")
        == "linear_rows"
    )


def test_error_is_a_value_error() -> None:
    assert issubclass(longfocus.LongFocusError, ValueError)
