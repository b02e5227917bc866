"""The kit for a vendor's wheel that runs vLLM on the vendor's hardware. Requires neither vLLM nor the hardware."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
from sage_infer.discovery.readiness import unmet_needs
from sage_infer.errors import BackendUnavailable, CapabilityMismatch
from sage_infer.factories import load_object
from sage_infer.schemas import ModelDescriptor, QuantizationProfile
from sage_infer.specs import BackendSpec

from sage_infer_testing.stand_in import add_distribution
from sage_infer_testing.suite import ContractSuite
from sage_infer_testing.vllm_stand_in import add_vendor_stack

__all__ = ["VLLMPlatformContract"]

_ADAPTER = "sage_infer_vllm"
_IDENTITY = {"backend_name", "hardware_backend", "plugin_distributions", "sources"}  # these need no source
_BROKEN_VLLM = "libvendor.so: cannot open shared object file"
_WITHOUT_ADAPTER = f"""
import importlib, json, sys
sys.modules["{_ADAPTER}"] = None
plugin = importlib.import_module(sys.argv[1])
detectors = plugin.sage_infer_detectors() if hasattr(plugin, "sage_infer_detectors") else []
for spec in detectors:
    for path in filter(None, (spec.factory, spec.read_recording)):
        importlib.import_module(path.partition(":")[0])
print(json.dumps({{spec.name: list(spec.requires) for spec in plugin.sage_infer_backends()}}))
"""


class VLLMPlatformContract(ContractSuite, kit=True):
    """Guarantees of a wheel that runs vLLM on a vendor's platform, up to the call of vLLM.

    Attributes:
        module: plug-in module of the wheel, with one generating backend and one for embedding and reranking.
        stack: the vendor's Python distributions with a supported version each, including vLLM and its plug-in.
        device: vLLM's device type on the platform, such as ``npu``.
        environment: environment variables that make devices 2 and 3 visible to the engine.
        mismatched: version by distribution that together with ``stack`` are no working combination, though each is in
            its range; empty if the vendor has only one combination.
        checkpoints: quantized checkpoints as the vendor's tools write them: a name, the files with their content, and
            the bits of weights and activations.
    """

    module: ClassVar[str] = ""
    stack: ClassVar[Mapping[str, str]] = {}
    device: ClassVar[str] = ""
    environment: ClassVar[Mapping[str, str]] = {}
    mismatched: ClassVar[Mapping[str, str]] = {}
    checkpoints: ClassVar[Mapping[str, tuple[Mapping[str, Any], int, int]]] = {}

    @pytest.fixture
    def adapter(self) -> Any:
        """The public module of vLLM's adapter; without it the wheel has no backends to test."""
        pytest.importorskip(_ADAPTER, reason="the backends are built on sage-infer-vllm")
        return importlib.import_module(f"{_ADAPTER}.vendor")

    @pytest.fixture
    def specs(self, adapter: Any) -> tuple[BackendSpec, BackendSpec]:
        """The specs of the generating and of the pooling backend."""
        if not self.module or not self.stack or not self.device:
            pytest.fail(f"{type(self).__name__} must set module, stack and device")
        found: list[BackendSpec] = importlib.import_module(self.module).sage_infer_backends()
        generating = [spec for spec in found if "llm" in spec.serves]
        pooling = [spec for spec in found if "embedding" in spec.serves]
        assert len(generating) == len(pooling) == 1, f"{self.module} lists {[spec.name for spec in found]}"
        return generating[0], pooling[0]

    @pytest.fixture
    def backends(self, specs: tuple[BackendSpec, BackendSpec]) -> tuple[Any, Any]:
        """The two backend classes named by the specs."""
        return (
            load_object(specs[0].factory, what=specs[0].name),
            load_object(specs[1].factory, what=specs[1].name),
        )

    @pytest.fixture
    def platform(self, backends: tuple[Any, Any]) -> Any:
        """The ``Platform`` table of the vendor."""
        return backends[0].platform

    @pytest.fixture
    def tiny(self, tmp_path: Path) -> ModelDescriptor:
        """A folder that looks like a small Llama, for devices 2 and 3."""
        folder = tmp_path / "model"
        folder.mkdir()
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        (folder / "model.safetensors").write_bytes(bytes(8) + b"{}")
        return ModelDescriptor(model_id="tiny", model_type="llm", model_path=str(folder), device_ids=(2, 3))

    @pytest.fixture
    def site(self, platform: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder of ``sys.path`` with the vendor's distributions, and a vLLM that cannot be imported."""
        site = tmp_path / "site"
        for name, version in self.stack.items():
            add_distribution(site, name, version, self._entry_points(platform, name))
        (site / "vllm.py").write_text(f"raise ImportError({_BROKEN_VLLM!r})", "utf-8")
        monkeypatch.syspath_prepend(site)
        compat = f"{_ADAPTER}.compat"
        for loaded in [n for n in sys.modules if n in ("vllm", compat) or n.startswith(f"{compat}.")]:
            monkeypatch.delitem(sys.modules, loaded)
        return site

    @staticmethod
    def _entry_points(platform: Any, distribution: str) -> dict[str, str]:
        if distribution not in platform.plugin_distributions:
            return {}
        return {f"vllm.platform_plugins:{platform.plugin}": "vendor_plugin:register"}

    def test_lists_and_detects_without_the_adapter(self, specs: tuple[BackendSpec, BackendSpec]) -> None:
        """Without sage-infer-vllm the detectors can be imported, and both backends are listed with their requirements.

        How to fix: list them with ``sage_infer.sdk.platform_backends``, and import ``sage_infer_vllm`` only in the
        modules of platform and backends.
        """
        child = subprocess.run(
            [sys.executable, "-c", _WITHOUT_ADAPTER, self.module],
            capture_output=True, text=True, timeout=self.timeout_s,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        assert child.returncode == 0, f"{self.module} needs {_ADAPTER}:\n{child.stderr[-2000:]}"
        listed = json.loads(child.stdout.splitlines()[-1])
        assert set(listed) == {spec.name for spec in specs}
        assert all("sage-infer-vllm" in requires for requires in listed.values()), f"required are {listed}"

    def test_options_are_the_engines(self, adapter: Any, specs: tuple[BackendSpec, BackendSpec]) -> None:
        """The backends have the options of ``vllm`` and ``vllm-embedding``.

        How to fix: build the specs with ``PlatformBackends.spec("vllm", …)`` and ``spec("vllm-embedding", …)``.
        """
        engine = {
            spec.name: spec for spec in importlib.import_module(f"{_ADAPTER}.plugin").sage_infer_backends()
        }
        for ours, theirs in zip(specs, (engine["vllm"], engine["vllm-embedding"]), strict=True):
            assert ours.options == theirs.options, (
                f"the options of {ours.name} are not those of {theirs.name}"
            )
            assert (ours.prepare, ours.memory) == (theirs.prepare, theirs.memory)

    def test_every_fact_has_a_source(self, platform: Any) -> None:
        """Each attribute that is set in the table has a source.

        How to fix: add the file, page or release that it comes from to ``Platform.sources``.
        """
        stated = {
            field.name
            for field in attrs.fields(type(platform))
            if field.name not in _IDENTITY
            and getattr(platform, field.name) not in (None, (), {}, field.default)
        }
        assert not stated - set(platform.sources), (
            f"without a source: {sorted(stated - set(platform.sources))}"
        )

    def test_needs_name_what_is_missing_and_the_fix(self, specs: tuple[BackendSpec, BackendSpec]) -> None:
        """Both backends declare their needs, and each missing need names the searched locations and the fix.

        How to fix: add a ``Need`` for driver, toolkit, vLLM and its plug-in, each with ``install``.
        """
        for spec in specs:
            assert spec.needs, f"{spec.name} declares no needs"
            for need in unmet_needs(spec.needs):
                assert all((need.what, need.found, need.install)), f"incomplete: {need}"

    def test_names_are_the_registered_ones(
        self, specs: tuple[BackendSpec, BackendSpec], backends: tuple[Any, Any], tiny: ModelDescriptor
    ) -> None:
        """Backends, specs and table agree on names, and the table sets the vendor's own hardware name.

        How to fix: use the name of the generating spec as ``Platform.backend_name``, and
        ``<backend_name>-embedding`` for the other spec. Set ``Platform.hardware_backend``, because some platforms call
        their device ``cuda``.
        """
        for spec, backend in zip(specs, backends, strict=True):
            assert backend(tiny).name == spec.name
            assert spec.hardware == {backend.platform.hardware_backend}, (
                f"{spec.name} is registered for {sorted(spec.hardware)}, "
                f"its table says {backend.platform.hardware_backend!r}"
            )

    def test_starting_without_the_stack_says_what_to_install(
        self, backends: tuple[Any, Any], tiny: ModelDescriptor
    ) -> None:
        """If vLLM is not installed, ``start`` raises ``BackendUnavailable`` with the command that installs it.

        How to fix: name vLLM's distributions in ``Platform.engine``.
        """
        for backend in backends:
            present = [name for name in backend.platform.engine if _version(name) is not None]
            if present:
                pytest.skip(f"{present[0]} is installed here")
            with pytest.raises(BackendUnavailable, match=r"vLLM is not installed; pip install 'vllm"):
                asyncio.run(backend(tiny).start())

    @pytest.mark.usefixtures("site")
    def test_the_stack_is_recognized_by_its_metadata(
        self, adapter: Any, platform: Any, specs: tuple[BackendSpec, BackendSpec]
    ) -> None:
        """With the distributions of ``stack`` installed, the table and the needs find all of them.

        How to fix: compare the specifiers in ``Platform`` and ``needs`` with the versions in ``stack``.
        """
        assert adapter.missing(platform) == []
        of_python = {need.what for spec in specs for need in spec.needs if need.distributions}
        unmet = [str(need) for need in unmet_needs(specs[0].needs) if need.what in of_python]
        assert not unmet, f"not recognized: {'; '.join(unmet)}"

    def test_the_platform_plugin_and_its_version_are_checked(
        self, adapter: Any, platform: Any, site: Path
    ) -> None:
        """A missing or outdated platform plug-in of vLLM is named, with the supported versions.

        How to fix: set ``Platform.plugin`` and ``Platform.plugin_distributions``.
        """
        if platform.plugin is None:
            pytest.skip("the platform is built into the vendor's vLLM")
        ((name, specifier),) = platform.plugin_distributions.items()
        (metadata,) = site.glob(f"{name.replace('-', '_')}-*")
        metadata.rename(site / "elsewhere")
        assert adapter.missing(platform)[0].startswith(
            f"{name}{specifier} is not installed; pip install '{name}"
        )
        add_distribution(site, name, "0.0.1", self._entry_points(platform, name))
        expected = f"{name} 0.0.1 is installed, expected {name}{specifier}; pip install '{name}{specifier}'"
        assert adapter.missing(platform) == [expected]

    def test_the_stack_makes_the_backends_ready(
        self, adapter: Any, specs: tuple[BackendSpec, BackendSpec], tmp_path: Path
    ) -> None:
        """On a machine with the distributions of ``stack`` and the files of the needs, both backends are ``ready``.

        How to fix: compare ``needs`` and ``device_nodes`` of the specs with ``stack``, and name a file for each need.
        """
        states = self._listed(specs, tmp_path, self.stack)
        assert set(states.values()) == {""}, f"not ready: {states}"

    def test_releases_that_do_not_work_together_are_named(
        self, adapter: Any, specs: tuple[BackendSpec, BackendSpec], tmp_path: Path
    ) -> None:
        """With ``mismatched`` releases, both backends list one line that names the releases and what works.

        How to fix: set ``Need.pairs``, and ``Platform.pairs`` to the same value.
        """
        if not self.mismatched:
            pytest.skip("the vendor has one combination of releases")
        versions = {**self.stack, **self.mismatched}
        for reason in self._listed(specs, tmp_path, versions).values():
            assert reason.count("\n") == 0
            assert "do not work together" in reason, reason
            assert all(f"{name} {version}" in reason for name, version in self.mismatched.items()), reason

    def _listed(
        self, specs: tuple[BackendSpec, BackendSpec], folder: Path, versions: Mapping[str, str]
    ) -> dict[str, str]:
        """Why each backend is not ready, as ``sage infer backend list`` prints it on a machine with these versions."""
        machine = add_vendor_stack(
            folder / "site", folder / "root", specs[0].needs, versions, device_nodes=specs[0].device_nodes
        )
        child = subprocess.run(
            [sys.executable, "-m", "sage_infer.cli.main", "infer", "backend", "list", "--json"],
            capture_output=True, text=True, timeout=self.timeout_s, check=True,
            env={
                **os.environ, **machine,
                "PYTHONPATH": os.pathsep.join(filter(None, [machine["PYTHONPATH"], *sys.path])),
            },
        )  # fmt: skip
        rows = {row["name"]: row for row in json.loads(child.stdout)}
        if any(spec.name not in rows for spec in specs):
            pytest.skip("the wheel is not installed, so the command does not list its backends")
        return {
            spec.name: ""
            if rows[spec.name]["state"] == "ready"
            else "\n".join(missing["found"] for missing in rows[spec.name]["missing"])
            for spec in specs
        }

    def test_checkpoints_of_the_vendors_tools_are_recognized(
        self, backends: tuple[Any, Any], tiny: ModelDescriptor
    ) -> None:
        """Each checkpoint is accepted with its bits, and refused by the field with others.

        How to fix: list the method in ``Platform.quantization``, with the name in checkpoints if it differs.
        """
        if not self.checkpoints:
            pytest.skip("no checkpoints are given")
        for name, (files, weights, activations) in self.checkpoints.items():
            for file, content in files.items():
                (Path(tiny.model_path) / file).write_text(json.dumps(content), "utf-8")
            fitting = QuantizationProfile(profile_id=name, weight_bits=weights, activation_bits=activations)
            backends[0](tiny).load_quant_profile(fitting)
            other = attrs.evolve(fitting, weight_bits=2)
            with pytest.raises(CapabilityMismatch, match=rf"has {weights}-bit weights .*weight_bits"):
                backends[0](tiny).load_quant_profile(other)
            for file in files:
                if file != "config.json":
                    (Path(tiny.model_path) / file).unlink()

    def test_another_vendors_plugin_is_named(self, adapter: Any, platform: Any, site: Path) -> None:
        """A second platform plug-in of vLLM is reported, because a process can use only one.

        How to fix: set ``Platform.plugin``, to distinguish your plug-in from others.
        """
        if platform.plugin is None:
            pytest.skip("the platform is built into the vendor's vLLM")
        add_distribution(site, "vllm-other", "1.0", {"vllm.platform_plugins:other": "x:register"})
        (line,) = adapter.missing(platform)
        assert "other (vllm-other)" in line

    @pytest.mark.usefixtures("site")
    def test_starting_goes_as_far_as_importing_vllm(
        self, backends: tuple[Any, Any], tiny: ModelDescriptor
    ) -> None:
        """With the stack installed, ``start`` imports vLLM and reports errors of the import.

        How to fix: make the versions in ``stack`` match ``Platform.engine`` and ``plugin_distributions``.
        """
        for backend in backends:
            with pytest.raises(BackendUnavailable, match=rf"vLLM cannot be imported .*{_BROKEN_VLLM}"):
                asyncio.run(backend(tiny).start())

    def test_the_table_reaches_the_engine(self, adapter: Any, platform: Any, tiny: ModelDescriptor) -> None:
        """Engine arguments and environment follow the table: memory fraction, visible devices, additional options.

        How to fix: set ``visible_devices``, ``memory_fraction`` and ``engine_options`` in the table, and
        ``environment`` in the test class.
        """
        arguments = adapter.engine_arguments(
            adapter.VLLMSettings(), platform, tiny, "folder", device=self.device, runner="generate"
        )
        assert arguments["model"] == "folder"
        assert arguments.get("gpu_memory_utilization") == platform.memory_fraction
        assert platform.engine_options.items() <= arguments.items()
        assert adapter.visible_devices(platform, tiny, self.device) == dict(self.environment)

    def test_quantization_follows_the_table(
        self, backends: tuple[Any, Any], platform: Any, tiny: ModelDescriptor
    ) -> None:
        """Checkpoints with the table's quantization methods are accepted; others, and float ones, are refused by name.

        How to fix: list in ``Platform.quantization`` the methods that the vendor's vLLM supports, by their names in
        checkpoints.
        """
        if platform.quantization is None:
            pytest.skip("the table leaves quantization to vLLM")
        config = Path(tiny.model_path) / "config.json"
        for method in platform.quantization:
            bits = (method.weight_bits, method.activation_bits)
            profile = QuantizationProfile(profile_id="p", weight_bits=bits[0], activation_bits=bits[1])
            config.write_text(_quantized(method.checkpoint_name, *bits), "utf-8")
            backends[0](tiny).load_quant_profile(profile)
            config.write_text(_quantized("of-another-vendor", *bits), "utf-8")
            with pytest.raises(CapabilityMismatch, match=f"{platform.backend_name} does not support"):
                backends[0](tiny).load_quant_profile(profile)
            if not method.online:
                config.write_text("{}", "utf-8")
                with pytest.raises(CapabilityMismatch, match="the checkpoint is not quantized"):
                    backends[0](tiny).load_quant_profile(profile)


def _quantized(method: str, weights: int, activations: int) -> str:
    """The ``config.json`` of a checkpoint that was quantized by a method."""
    group = {"weights": {"num_bits": weights}, "input_activations": {"num_bits": activations}}
    return json.dumps({"quantization_config": {"quant_method": method, "config_groups": {"group_0": group}}})


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
