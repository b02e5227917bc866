"""Base of all kits: shared instances, async tests, claims, advice.

A test of a kit is a method ``test_…``, async or not, with fixtures as in any pytest test. Its docstring starts with the
assertion and ends with "How to fix: …". A vendor's own async tests in a subclass run in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from sage_infer_testing.guard import ContractMeta, contract_tests, xfail
from sage_infer_testing.loop import LoopThread
from sage_infer_testing.unwritten import find_unwritten, report_unwritten

__all__ = ["ContractSuite", "xfail"]

T = TypeVar("T")

NOT_MADE = (
    "not run: the backend could not be made"  # how the reason begins where no instance could be started
)
_SHARED = pytest.StashKey[dict[str, tuple[Any, BaseException | None]]]()


class ContractSuite(metaclass=ContractMeta, kit=True):
    """Base of every kit.

    Attributes:
        timeout_s: timeout of a test in seconds.
        settle_s: maximum wait in seconds for an expected condition, such as freed memory.
    """

    timeout_s: float = 120.0
    settle_s: float = 60.0

    _node: Any = None  # the test that runs
    _loop: LoopThread

    @pytest.fixture(autouse=True)
    def _contract_loop(self, request: pytest.FixtureRequest) -> None:
        self._node = request.node
        self._loop = self.share(request, "loop", LoopThread, LoopThread.close)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the class's event loop."""
        __tracebackhide__ = True
        return self._loop.run(coroutine, timeout_s=self.timeout_s)

    def share(
        self, request: pytest.FixtureRequest, key: str, make: Callable[[], T], dispose: Callable[[T], object]
    ) -> T:
        """Share one object between all tests of the class. If it cannot be created, the first test reports why."""
        __tracebackhide__ = True
        node = request.node.getparent(pytest.Class)
        assert node is not None, "contract tests live in classes"
        shared = node.stash.setdefault(_SHARED, {})
        if key not in shared:
            try:
                made = make()
            except (Exception, pytest.fail.Exception) as error:
                shared[key] = (None, error)
                node.addfinalizer(lambda: shared.pop(key))
                if (missing := find_unwritten(error)) is not None:
                    report_unwritten(request.node, missing)
                raise
            shared[key] = (made, None)
            node.addfinalizer(lambda: dispose(shared.pop(key)[0]))
        value, failure = shared[key]
        if failure is not None:
            if (missing := find_unwritten(failure)) is not None:
                report_unwritten(request.node, missing)
            pytest.fail(f"not run: the {key} could not be made ({failure})", pytrace=False)
        return value  # type: ignore[no-any-return]  # made by ``make``

    def test_nothing_is_switched_off(self, request: pytest.FixtureRequest) -> None:
        """No contract test of this class is skipped by a mark from a conftest, a plug-in or another module.

        How to fix: remove the mark. If the implementation cannot pass a test, override the test in the class and
        decorate it with ``sage_infer_testing.xfail(reason=…)``. Do not claim capabilities that it lacks.
        """
        names = contract_tests(type(self))
        skipped = {
            item.originalname
            for item in request.session.items
            if isinstance(item, pytest.Function) and item.cls is type(self) and item.originalname in names
            and any(mark.name in ("skip", "skipif") for mark in item.own_markers)
        }  # fmt: skip
        assert not skipped, f"contract tests are marked to be skipped: {', '.join(sorted(skipped))}"
