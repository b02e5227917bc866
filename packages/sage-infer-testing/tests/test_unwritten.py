"""A method that is not written fails one test; the tests that wait for it name it."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit_runs import run_module
from sage_infer.compat import ExceptionGroup
from sage_infer_testing.unwritten import find_unwritten

STORE = """
from sage_infer.sdk import BaseKVStore
from sage_infer_testing import KVStoreContract, xfail


class Store(BaseKVStore):
    def write(self, key, block):
        raise NotImplementedError("store a copy of the block")

    def read(self, place, out):
        raise NotImplementedError("copy the block")


class TestStore(KVStoreContract):
    def open_store(self, capacity_blocks):
        return Store(schema=self.kv_schema, model_id=self.model_id, capacity_blocks=capacity_blocks)
"""
BACKEND = """
from sage_infer.schemas import ModelDescriptor
from sage_infer.sdk import BaseInferenceBackend
from sage_infer_testing import InferenceBackendContract


class Backend(BaseInferenceBackend):
    name, vocabulary = "half", 256

    {method}

    def encode(self, prompt):
        return list(prompt.text.encode())


class TestBackend(InferenceBackendContract):
    def make_backend(self):
        return Backend(ModelDescriptor(model_id="m", model_type="llm", model_path="/nowhere"))
"""


def outcomes(source: str, folder: Path, *arguments: str) -> dict[str, dict[str, str]]:
    events = run_module(source, folder, *arguments)
    return {event["name"]: event for event in events if event["event"] == "finished"}


def test_one_failure_for_a_missing_method(tmp_path: Path) -> None:
    found = outcomes(STORE, tmp_path)
    (failed,) = [event for event in found.values() if event["outcome"] == "failed"]
    assert failed["reason"].startswith("Store.write() is not written yet (")
    assert failed["reason"].endswith("): store a copy of the block; nor is read()")
    assert failed["advice"] == "write it; other tests wait for it, and are skipped until then."
    waiting = {event["reason"] for event in found.values() if event["outcome"] == "skipped"}
    assert f"waits for Store.write(), see {failed['name']}" in waiting
    assert any(event["outcome"] == "passed" for event in found.values())


def test_an_expected_failure_does_not_hide_it(tmp_path: Path) -> None:
    first = next(
        event["name"] for event in outcomes(STORE, tmp_path).values() if event["outcome"] == "failed"
    )
    marked = f'{STORE}\n    @xfail(reason="known")\n    def {first}(self): ...\n'
    (tmp_path / "marked").mkdir()
    assert outcomes(marked, tmp_path / "marked", "-k", first)[first]["outcome"] == "xfailed"
    found = outcomes(marked, tmp_path / "marked")
    assert [event["outcome"] for event in found.values()].count("failed") == 1


def test_what_the_sdk_leaves_to_a_subclass_is_named(tmp_path: Path) -> None:
    found = outcomes(BACKEND.format(method=""), tmp_path, "-k", "deterministic or seed or stop_string")
    (failed,) = [event for event in found.values() if event["outcome"] == "failed"]
    assert "Backend must override complete()" in failed["reason"]


def test_a_backend_that_cannot_load_fails_once(tmp_path: Path) -> None:
    load = 'def load(self, report): raise NotImplementedError("load the model")'
    chosen = "healthy or deterministic or stop_string or after_close"
    found = outcomes(BACKEND.format(method=load), tmp_path, "-k", chosen)
    (failed,) = [event for event in found.values() if event["outcome"] == "failed"]
    assert failed["reason"].startswith("Backend.load() is not written yet")
    assert sum(event["reason"].startswith("waits for Backend.load()") for event in found.values()) >= 3


def test_the_cause_is_found_in_chains_and_groups() -> None:
    def stub() -> None:
        raise NotImplementedError("do\nthis")

    def outer() -> None:
        try:
            stub()
        except NotImplementedError as error:
            raise RuntimeError("outer") from error

    with pytest.raises(RuntimeError) as caught:
        outer()
    group = ExceptionGroup("several", [ValueError("other"), caught.value])
    group.__cause__ = group  # not followed for ever
    found = find_unwritten(group)
    assert found is not None
    assert found.message == "do this"
    assert find_unwritten(ValueError("other")) is None
    assert find_unwritten(NotImplementedError("never raised")) is None
