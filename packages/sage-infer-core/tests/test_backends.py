"""``open_backend``: what opens, what is refused and in which words."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sage_infer import backends
from sage_infer.backends import create_backend, find_backend, open_backend
from sage_infer.errors import (
    BackendUnavailable,
    ConfigError,
    InvalidRequest,
    SageInferError,
    UnsupportedFeature,
)
from sage_infer.schemas import ModelDescriptor

if TYPE_CHECKING:
    from conftest import Site

ENGINE = """
from sage_infer.errors import UnsupportedFeature
log = []
class Backend:
    def __init__(self, model, *, threads=1, precision="f32"):
        self.model, self.threads = model, threads
        log.append("made")
    async def start(self):
        log.append("started")
        if self.threads == 0:
            raise UnsupportedFeature("no threads")
    async def close(self):
        log.append("closed")
class Waiting:
    def __init__(self, model):
        pass
    async def start(self):
        import asyncio
        await asyncio.Event().wait()
    async def close(self):
        pass
class Careless:
    def __init__(self, model, *, size=1):
        self.size = 1 / size + len(None if size == 2 else "")
        if size == 3:
            raise SystemExit(3)
    async def start(self):
        raise KeyError("weights")
    async def close(self):
        pass
class Anything:
    def __init__(self, model, **options):
        self.options = options
refused = property(lambda self: None)
"""
PLUGIN = """
from sage_infer import BackendSpec, hookimpl
@hookimpl
def sage_infer_backends():
    make = lambda name, what, **more: BackendSpec(name=name, factory=what, serves=more.pop("serves", {"llm"}), **more)
    return [make("engine", "fake_engine:Backend"), make("lost", "fake_engine:Nothing"),
            make("careless", "fake_engine:Careless"), make("constant", "fake_engine:log"),
            make("waiting", "fake_engine:Waiting"),
            make("any", "fake_engine:Anything"),
            make("absent", "no_such_engine:Backend"), make("refusing", "refusing_engine:Backend"),
            make("needy", "fake_engine:Backend", requires={"no-such-dist": ""}),
            make("two", "fake_engine:Backend", serves={"llm", "embedding"})]
"""
MODEL = ModelDescriptor(model_id="m", model_type="llm", model_path="/m")


@pytest.fixture(autouse=True)
def _installed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add("fake", PLUGIN)
    (site.folder / "fake_engine.py").write_text(ENGINE)
    (site.folder / "refusing_engine.py").write_text(
        "from sage_infer.errors import UnsupportedFeature\nraise UnsupportedFeature('wants another CPU')"
    )
    registry = site.registry()
    monkeypatch.setattr(backends, "discover", lambda: registry)


def log() -> list[str]:
    import fake_engine

    entries: list[str] = fake_engine.log
    return entries


def test_it_is_started_on_entry_and_closed_on_exit() -> None:
    async def main() -> None:
        async with open_backend("engine", model=MODEL, threads=3) as backend:
            assert (backend.model, backend.threads) == (MODEL, 3)
            assert log() == ["made", "started"]

    asyncio.run(main())
    assert log() == ["made", "started", "closed"]


def test_a_failed_start_is_closed_and_raised() -> None:
    async def main() -> None:
        async with open_backend("engine", model=MODEL, threads=0):
            pytest.fail("must not open")

    with pytest.raises(UnsupportedFeature, match="no threads"):
        asyncio.run(main())
    assert log()[-1] == "closed"


def test_a_start_that_fails_by_mistake_names_the_wheel() -> None:
    async def main() -> None:
        async with open_backend("careless", model=MODEL):
            pytest.fail("must not open")

    with pytest.raises(
        BackendUnavailable, match="'careless' of fake-dist failed to start: KeyError: 'weights'"
    ) as caught:
        asyncio.run(main())
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_cancelled_start_stays_a_cancellation() -> None:
    async def main() -> None:
        async with open_backend("waiting", model=MODEL):
            pytest.fail("must not open")

    async def cancel() -> None:
        task = asyncio.ensure_future(main())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())


def test_a_model_is_resolved_by_name(gguf: Path) -> None:
    backend = create_backend("engine", model=str(gguf))
    assert (backend.model.model_path, backend.model.model_type) == (str(gguf), "llm")


def test_a_model_of_another_type_is_refused(gguf: Path) -> None:
    with pytest.raises(InvalidRequest, match="llm"):
        create_backend("two", model=str(gguf), serves="embedding")


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("engin", {}, BackendUnavailable, "no backend 'engin'; did you mean 'engine'?"),
        (
            "zzz",
            {},
            BackendUnavailable,
            "installed: absent, any, careless, constant, engine, lost, needy, ",
        ),
        ("lost", {}, BackendUnavailable, "factory fake_engine:Nothing does not exist"),
        ("absent", {}, BackendUnavailable, "there is no module no_such_engine"),
        ("refusing", {}, UnsupportedFeature, "wants another CPU"),
        (
            "needy",
            {},
            BackendUnavailable,
            "needs no-such-dist .not installed.; to fix: pip install no-such-dist",
        ),
        ("engine", {"serves": "embedding"}, BackendUnavailable, "serves llm, not embedding"),
        (
            "careless",
            {"size": 2},
            BackendUnavailable,
            "backend 'careless' of fake-dist: fake_engine:Careless failed with options size: TypeError: object of",
        ),
        ("careless", {"size": 0}, BackendUnavailable, "ZeroDivisionError: division by zero"),
        ("careless", {"size": 3}, BackendUnavailable, "SystemExit: 3"),
        (
            "constant",
            {},
            BackendUnavailable,
            "fake_engine:log failed: TypeError: 'list' object is not callable",
        ),
        ("engine", {"thread": 2}, ConfigError, "no option 'thread'; did you mean 'threads'?"),
        ("engine", {"zzz": 2}, ConfigError, "it has: precision, threads"),
    ],
)
def test_refusals_say_what_and_what_next(
    name: str, options: dict[str, Any], error: type[SageInferError], message: str
) -> None:
    with pytest.raises(error, match=message):
        create_backend(name, model=MODEL, **options)


def test_a_factory_that_takes_any_option_gets_them() -> None:
    assert create_backend("any", model=MODEL, colour="red").options == {"colour": "red"}


def test_a_backend_is_found_whatever_its_state() -> None:
    assert find_backend("needy").state == "missing-requirement"
