from __future__ import annotations

from prerank.errors import (
    CheckFailedError,
    InputError,
    PrerankError,
    did_you_mean,
    missing_extra,
)


def test_exit_codes_tell_bad_input_from_a_failed_run() -> None:
    assert (PrerankError.exit_code, CheckFailedError.exit_code, InputError.exit_code) == (1, 1, 2)
    assert issubclass(InputError, PrerankError)
    assert issubclass(CheckFailedError, PrerankError)


def test_did_you_mean_names_the_nearest_or_lists_all() -> None:
    assert did_you_mean("clik", ["watch_ms", "click"]) == "did you mean 'click'?"
    assert did_you_mean("zzz", iter(["b", "a"])) == "known: a, b"
    assert did_you_mean("anything", []) == "none are known"


def test_missing_extra_says_what_to_install() -> None:
    error = missing_extra("faiss", "ann")
    assert isinstance(error, InputError)
    assert str(error) == "'faiss' is not installed; run: pip install 'prerank[ann]'"
