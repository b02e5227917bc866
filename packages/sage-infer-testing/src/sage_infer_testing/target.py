"""Targets of the kit (installed backends and other items), and the test classes for their kinds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from sage_infer.discovery import KindName
from sage_infer.errors import BackendUnavailable, InvalidRequest
from sage_infer.names import ModelType
from sage_infer.schemas import ModelDescriptor
from sage_infer.schemas.codec import from_dict, to_dict

from sage_infer_testing.parts import part_kits

__all__ = ["ENVIRONMENT_KEY", "Target", "find_part", "find_targets"]

ENVIRONMENT_KEY = "SAGE_INFER_TESTING_TARGET"

_DEFAULT_MODELS: Mapping[ModelType, str] = {"llm": "smollm2-135m", "embedding": "minilm"}
_KINDS = {"llm": "llm", "multimodal": "llm", "embedding": "embedding", "reranker": "reranker"}


@frozen(kw_only=True)
class Target:
    """An item of a plug-in, and the settings of the kit.

    Attributes:
        backend: name of the item, usually a backend.
        module: the plug-in module.
        models: models to open the backend with, by the type that it serves with them; empty for other kinds.
        kind: kind of the item, as in ``sage infer plugin list``.
    """

    backend: str
    module: str
    models: Mapping[str, ModelDescriptor] = field(factory=dict)
    kind: KindName = "backend"
    options: Mapping[str, Any] = field(factory=dict)
    settings: Mapping[str, Any] = field(factory=dict)
    is_sample: bool = field(default=False, eq=False)  # the kit chose the models, because none was named

    def to_json(self) -> str:
        """Return JSON text for ``from_json`` in the test process."""
        models = {kind: to_dict(model) for kind, model in self.models.items()}
        plain = {
            "backend": self.backend, "module": self.module, "kind": self.kind, "options": dict(self.options),
        }  # fmt: skip
        return json.dumps({**plain, "settings": dict(self.settings), "models": models})

    @classmethod
    def from_json(cls, text: str) -> Target:
        data = json.loads(text)
        data["models"] = {kind: from_dict(model, ModelDescriptor) for kind, model in data["models"].items()}
        return cls(**data)

    def suites(self) -> dict[str, type]:
        """Return the test classes by name: one for the plug-in, and one per type of model or for the item's kind.

        Raises:
            InvalidRequest: no kit has such a setting.
        """
        from sage_infer_testing.kits.embedding import EmbeddingBackendContract
        from sage_infer_testing.kits.hybrid import HybridBackendContract
        from sage_infer_testing.kits.inference import InferenceBackendContract
        from sage_infer_testing.kits.plugin import PluginContract

        kits: Mapping[str, tuple[str, type]] = {
            "llm": ("TestInference", InferenceBackendContract),
            "embedding": ("TestEmbedding", EmbeddingBackendContract),
            "reranker": ("TestReranking", EmbeddingBackendContract),
            "hybrid": ("TestHybrid", HybridBackendContract),
        }
        suites = {"TestPlugin": self._suite("TestPlugin", PluginContract, {"module": self.module})}
        if self.kind != "backend":
            for name, kit, fixed in part_kits(self.kind, self.backend, self.options, self.models):
                suites[name] = self._suite(name, kit, fixed)
        for kind, model in self.models.items() if self.kind == "backend" else ():
            name, kit = kits[kind]
            fixed = {
                "backend_name": self.backend,
                "model": model,
                "options": dict(self.options),
                "serves": kind,
            }
            if kind == "hybrid" and model.model_type in ("llm", "embedding"):
                fixed["llm" if model.model_type == "llm" else "embedder"] = model.model_id
            suites[name] = self._suite(name, kit, fixed)
        used = {name for suite in suites.values() for name in self.settings if hasattr(suite, name)}
        unknown = sorted(self.settings.keys() - used)
        if unknown:
            raise InvalidRequest(
                f"the kit has no setting {', '.join(unknown)}; see the attributes of its classes"
            )
        return suites

    def _suite(self, name: str, kit: type, fixed: Mapping[str, Any]) -> type:
        settings = {key: value for key, value in self.settings.items() if hasattr(kit, key)}
        home = "sage_infer_testing.installed"
        return type(kit)(name, (kit,), {"__module__": home, "__qualname__": name, **settings, **fixed})


def find_part(
    name: str, kind: KindName, model: str | None, options: Mapping[str, Any], settings: Mapping[str, Any]
) -> Target:
    """Return the target for an item other than a backend. An executor runs replicas of the model or a sample model.

    Raises:
        BackendUnavailable: the item is missing or not ready.
        ModelNotFound: the model is not on this machine.
        InvalidRequest: no kit has such a setting, or the kind has no options or no model.
        UnsupportedFeature: the kit cannot create the environment that the item requires.
    """
    from sage_infer.models import resolve_model
    from sage_infer.plugins import find_plugin, require_ready

    info = find_plugin(name, kind)
    require_ready(info)
    models: dict[str, ModelDescriptor] = {}
    if kind == "executor":
        found = resolve_model(model or _DEFAULT_MODELS["embedding"])
        models[_KINDS[found.model_type]] = found
    elif model is not None:
        raise InvalidRequest(f"a {kind} is tested without a model; leave --model out")
    target = Target(
        backend=name,
        module=info.plugin.location,
        kind=kind,
        models=models,
        options=options,
        settings=settings,
    )
    target.suites()
    return target


def find_targets(
    backend: str, model: str | None, options: Mapping[str, Any], settings: Mapping[str, Any]
) -> Target:
    """Return the target for a backend with the given model, or with a sample model of each type that it serves.

    Raises:
        BackendUnavailable: the backend is missing or not ready.
        ModelNotFound: the model is not on this machine.
        InvalidRequest: the backend does not serve this type of model, or there is no sample model.
    """
    from sage_infer.backends import find_backend
    from sage_infer.models import resolve_model

    info = find_backend(backend)
    if info.state != "ready" or info.spec is None:
        fix = f"; to fix: {info.fix}" if info.fix else ""
        raise BackendUnavailable(f"backend {backend!r} is not ready ({info.state}): {info.reason}{fix}")
    serves = info.spec.serves
    models: dict[str, ModelDescriptor] = {}
    if model is not None:
        only = next(iter(serves)) if len(serves) == 1 and "hybrid" not in serves else None
        any_format = info.spec.sizes is not None
        found = resolve_model(model, model_type=only, any_format=any_format)  # type: ignore[arg-type]  # no hybrid
        kind = _KINDS[found.model_type]
        if kind not in serves and "hybrid" not in serves:
            kinds = ", ".join(sorted(serves))
            raise InvalidRequest(
                f"{model!r} is a model of type {found.model_type}; {backend!r} serves {kinds}"
            )
        models[kind if kind in serves else "hybrid"] = found
    elif info.spec.sizes is not None:
        raise InvalidRequest(
            f"{backend!r} reads model files in its own format, so there is no sample model for it; name a model with "
            "--model FILE"
        )
    else:
        for kind, name in _DEFAULT_MODELS.items():
            if kind in serves:
                models[kind] = resolve_model(name, model_type=kind)
        if not models:
            raise InvalidRequest(
                f"there is no sample model of the types that {backend!r} serves; name one with --model"
            )
    target = Target(
        backend=backend, module=info.plugin.location, models=models, options=options, settings=settings,
        is_sample=model is None,
    )  # fmt: skip
    target.suites()
    return target
