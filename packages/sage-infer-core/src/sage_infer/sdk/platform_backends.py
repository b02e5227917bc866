"""Backends of a vendor's wheel that run another wheel's engine on the vendor's platform.

The vendor's plug-in is listed even if the wheel of the engine is not installed. Only the plug-in module of the engine
is imported, never the engine itself.
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
    """Common properties of one vendor's backends on one engine; ``spec`` builds the ``BackendSpec`` of each.

    Attributes:
        engine_plugin: plug-in module of the engine, such as ``sage_infer_vllm.plugin``.
        requires: the engine's wheel with its version specifier, as in ``BackendSpec.requires``.
        install: command that installs the engine's wheel.
        hardware: the vendor's hardware name.
        needs: other requirements: driver, toolkit, the vendor's build of the engine.
        device_nodes: glob patterns of files that exist if the hardware is present.
        limits: limitations and unverified features, one sentence each.
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
        """Return the spec of a backend that runs ``engine_backend`` of the engine's wheel on this platform.

        Options, ``prepare``, ``memory`` and ``tokenizer`` are those of the engine's backend. If the engine's wheel is
        not installed, they are empty, and the backend is listed with a missing requirement.

        Raises:
            LookupError: the engine's wheel is installed but has no backend with this name.
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
        return evolve(
            spec,
            options=base.options,
            prepare=base.prepare,
            memory=base.memory,
            tokenizer=base.tokenizer,
        )

    def _engine_backends(self) -> Mapping[str, BackendSpec] | None:
        """Return the backend specs of the engine's wheel by name, or None if it is not installed."""
        try:
            module = import_module(self.engine_plugin)
        except ImportError:
            return None
        specs: list[BackendSpec] = module.sage_infer_backends()
        return {spec.name: spec for spec in specs}
