"""The kit for plug-in modules: cheap imports, valid hooks and specs."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Collection
from typing import Any, ClassVar

import pytest
from sage_infer import CONTRACT_VERSION, hookspecs
from sage_infer.discovery import KINDS, Registry
from sage_infer.schemas import ModelDescriptor
from sage_infer.specs import EngineMemory

from sage_infer_testing.suite import ContractSuite

__all__ = ["PluginContract"]

_PROBE = """
import json, sys
import sage_infer.discovery, sage_infer.specs, sage_infer.hookspecs
before = set(sys.modules)
import importlib
module = importlib.import_module(sys.argv[1])
for name in dir(module):
    if name.startswith("sage_infer_") and callable(getattr(module, name)):
        getattr(module, name)()
print(json.dumps(sorted(set(sys.modules) - before)))
"""


class PluginContract(ContractSuite, kit=True):
    """Guarantees of a plug-in module for listing.

    Attributes:
        module: name of the plug-in module in the entry point.
        heavy: modules that it must not import.
        max_modules: maximum number of modules that its import may add, not counting its own package.
    """

    module: ClassVar[str] = ""
    heavy: ClassVar[Collection[str]] = frozenset({
        "accelerate", "aiohttp", "cattrs", "ctranslate2", "cupy", "diffusers", "fastapi", "httpx", "jax",
        "llama_cpp", "mlx", "mooncake", "nixl", "numpy", "onnx", "onnxruntime", "openvino", "openvino_genai",
        "openvino_tokenizers", "pandas", "pydantic", "pynvml", "ray", "requests", "rich", "safetensors", "scipy",
        "sentence_transformers", "sglang", "tensorflow", "tensorrt", "tensorrt_llm", "tokenizers", "torch",
        "torch_npu", "torch_mlu", "transformers", "triton", "typer", "vllm", "yaml",
    })  # fmt: skip
    max_modules: ClassVar[int] = 16

    @pytest.fixture
    def plugin(self) -> Any:
        """The plug-in module, imported here."""
        if not self.module:
            pytest.fail(f"{type(self).__name__} must set module, such as 'my_package.plugin'")
        return importlib.import_module(self.module)

    @pytest.fixture
    def registry(self) -> Registry:
        """A registry of this plug-in alone."""
        group = "sage_infer.backends"
        return Registry((importlib.metadata.EntryPoint(name="under-test", value=self.module, group=group),))

    def added_modules(self) -> list[str]:
        """Modules that a new interpreter imports for the plug-in and its hooks."""
        child = subprocess.run(
            [sys.executable, "-c", _PROBE, self.module],
            capture_output=True, text=True, timeout=self.timeout_s,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        assert child.returncode == 0, (
            f"import {self.module} fails in a fresh interpreter:\n{child.stderr[-2000:]}"
        )
        added: list[str] = json.loads(child.stdout.splitlines()[-1])
        return added

    def test_imports_nothing_heavy(self, plugin: Any) -> None:
        """Importing the module and calling its hooks loads no engine, numeric library or web framework.

        How to fix: import the engine in the factory's module, and refer to the factory by its dotted path. Also check
        the package's ``__init__``, which is imported first.
        """
        loaded = sorted({name.partition(".")[0] for name in self.added_modules()} & set(self.heavy))
        assert not loaded, f"{self.module} imports {', '.join(loaded)}"

    def test_imports_few_modules(self, plugin: Any) -> None:
        """Importing the module is cheap: it imports few other modules.

        How to fix: find them with ``python -X importtime -c 'import …'``, and move them into the factory's module.
        """
        own = self.module.partition(".")[0]
        added = [name for name in self.added_modules() if name.partition(".")[0] != own]
        assert len(added) <= self.max_modules, (
            f"{len(added)} modules, at most {self.max_modules}: {', '.join(added)}"
        )

    def test_contract_version_fits(self, plugin: Any) -> None:
        """``SAGE_INFER_CONTRACT``, if set, has the core's major version and is not newer than the core.

        How to fix: set it to the contract version that you build against, currently ``sage_infer.CONTRACT_VERSION``.
        """
        wanted = getattr(plugin, "SAGE_INFER_CONTRACT", CONTRACT_VERSION)
        assert isinstance(wanted, str), f"SAGE_INFER_CONTRACT must be a string such as '1.0', got {wanted!r}"
        theirs, ours = ([int(part) for part in version.split(".")] for version in (wanted, CONTRACT_VERSION))
        assert theirs[0] == ours[0], f"written for contract {wanted}, the core supports {CONTRACT_VERSION}"
        assert theirs <= ours, f"written for contract {wanted}, newer than the core's {CONTRACT_VERSION}"

    def test_hooks_are_known(self, plugin: Any) -> None:
        """Every function named ``sage_infer_…`` is a hook that the core calls, and is marked with ``hookimpl``.

        How to fix: compare the names with ``sage_infer.hookspecs``, and decorate each with ``@sage_infer.hookimpl``.
        """
        named = [
            name for name, value in vars(plugin).items() if name.startswith("sage_infer_") and callable(value)
        ]
        assert named, f"{self.module} has no function named sage_infer_…"
        for name in named:
            function = getattr(plugin, name)
            assert hasattr(hookspecs, name), f"there is no hook {name}"
            assert hasattr(function, f"{hookspecs.PROJECT}_impl"), (
                f"{name} is not marked with @sage_infer.hookimpl"
            )
            assert not inspect.signature(function).parameters, f"{name} must take no arguments"

    def test_hooks_return_specs(self, plugin: Any, registry: Registry) -> None:
        """Every hook returns a list of specs of its kind with unique names.

        How to fix: see the message, which ``sage infer backend list`` also shows for the plug-in.
        """
        faults = []
        for kind in KINDS:
            entries = registry.entries(kind)
            faults += [entry.fault.reason for entry in entries if entry.fault is not None]
        for plugin_ in registry.plugins:
            faults += [
                fault.reason for fault in (plugin_.fault, *plugin_.hook_faults.values()) if fault is not None
            ]
        assert not faults, "; ".join(faults)
        assert any(registry.entries(kind) for kind in KINDS), f"{self.module} brings nothing"

    def test_hooks_repeat_themselves(self, plugin: Any) -> None:
        """Calling a hook twice returns equal specs.

        How to fix: return literals; inspect devices, files and the environment in the factory.
        """
        for name, function in vars(plugin).items():
            if name.startswith("sage_infer_") and callable(function):
                assert function() == function(), f"{name} returns different specs the second time"

    def test_factories_resolve(self, plugin: Any, registry: Registry) -> None:
        """Every dotted path in a spec refers to a callable, unless a requirement of the spec is not installed.

        ``checks`` refers to a ``VendorChecks``, and ``template`` to a text.

        How to fix: correct the path, ``package.module:attribute``; import the engine so that a missing one raises a
        clear ``BackendUnavailable``.
        """
        from sage_infer.discovery.paths import dotted_paths
        from sage_infer.discovery.readiness import missing_requirements
        from sage_infer.factories import load_object
        from sage_infer.sdk.diagnosis import VendorChecks

        for kind in KINDS:
            for entry in registry.entries(kind):
                spec = entry.spec
                if missing_requirements(getattr(spec, "requires", {})):
                    continue
                for field, path in dotted_paths(spec).items():
                    if field == "template":
                        continue
                    found: object = load_object(path, what=f"{spec.name!r}")
                    is_right = isinstance(found, VendorChecks) if field == "checks" else callable(found)
                    assert is_right, f"{field} {path} of {spec.name!r} is a {type(found).__name__}"

    def test_memory_is_told_without_a_model(self, plugin: Any, registry: Registry) -> None:
        """``BackendSpec.memory`` returns an ``EngineMemory`` for all supported types of models and hardware.

        How to fix: estimate from the arguments alone; files of the model and options may be missing.
        """
        from sage_infer.discovery.readiness import missing_requirements
        from sage_infer.factories import load_object

        for entry in registry.backends():
            spec = entry.spec
            if spec.memory is None or missing_requirements(spec.requires):
                continue
            tell = load_object(spec.memory, what=f"{spec.name!r}")
            kinds: list[Any] = sorted(spec.serves - {"hybrid"})
            for kind, hardware in itertools.product(kinds, sorted(spec.hardware)):
                model = ModelDescriptor(model_id="m", model_type=kind, model_path="/nowhere")
                found = tell(model=model, options={}, hardware=hardware)
                assert isinstance(found, EngineMemory), f"{spec.memory} returned a {type(found).__name__}"

    def test_names_are_said_once(self, plugin: Any, registry: Registry) -> None:
        """All specs of a kind have unique names, and each has a summary for lists.

        How to fix: rename one of them; set ``summary`` to one line of text.
        """
        for kind in KINDS:
            specs = [entry.spec for entry in registry.entries(kind)]
            twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
            assert not twice, f"{kind}: {', '.join(twice)} is returned more than once"
            bare = [spec.name for spec in specs if not getattr(spec, "summary", "a section has none")]
            assert not bare, f"{kind}: {', '.join(bare)} has no summary"
