"""Backends of a vendor's wheel that are another wheel's engine on the vendor's platform.

The vendor's plug-in is listed whether the engine's wheel is installed or not; only the engine's plug-in module is
imported, never the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module

from attrs import evolve, field, frozen

from sage_infer.checks import as_tuple
from sage_infer.specs import BackendSpec, Need, ServedType

__all__ = ["PlatformBackends"]


@frozen(kw_only=True)
class PlatformBackends:
    """What the backends of one vendor on one engine share; ``spec`` makes the ``BackendSpec`` of each.

    Attributes:
        engine_plugin: module of the engine's hooks, such as ``sage_infer_vllm.plugin``.
        requires: the engine's wheel with its version specifier, as in ``BackendSpec.requires``.
        install: command that installs it.
        hardware: the vendor's hardware name.
        needs: what else must be there: driver, toolkit, the vendor's build of the engine.
        device_nodes: glob patterns of files that show that the hardware is there.
        limits: what is not verified or not supported, one sentence each.
    """

    engine_plugin: str
    requires: Mapping[str, str]
    install: str
    hardware: str
    needs: tuple[Need, ...] = field(default=(), converter=as_tuple)
    device_nodes: tuple[str, ...] = field(default=(), converter=as_tuple)
    limits: tuple[str, ...] = field(default=(), converter=as_tuple)

    def spec(
        self, engine_backend: str, *, name: str, factory: str, serves: Collection[ServedType], summary: str
    ) -> BackendSpec:
        """The spec of a backend that is ``engine_backend`` of the engine's wheel on this platform.

        Options, ``prepare`` and ``memory`` are those of the engine's backend. Where its wheel is not installed they
        are empty, and the backend is listed with a missing requirement.

        Raises:
            LookupError: the engine's wheel is installed and has no backend of that name.
        """
        spec = BackendSpec(
            name=name,
            factory=factory,
            serves=frozenset(serves),
            hardware=frozenset({self.hardware}),
            requires=self.requires,
            install=self.install,
            needs=self.needs,
            device_nodes=self.device_nodes,
            summary=summary,
            limits=self.limits,
        )
        engine = self._engine_backends()
        if engine is None:
            return spec
        if engine_backend not in engine:
            raise LookupError(
                f"backend {name!r} is built on {engine_backend!r} of {self.engine_plugin}, which has "
                f"{', '.join(sorted(engine)) or 'no backends'}; install a release of {' and '.join(self.requires)} "
                f"that has it"
            )
        base = engine[engine_backend]
        return evolve(spec, options=base.options, prepare=base.prepare, memory=base.memory)

    def _engine_backends(self) -> Mapping[str, BackendSpec] | None:
        """Specs of the engine's wheel by name; None where it is not installed."""
        try:
            module = import_module(self.engine_plugin)
        except ImportError:
            return None
        specs: list[BackendSpec] = module.sage_infer_backends()
        return {spec.name: spec for spec in specs}
