"""Stand-ins for a vendor's vLLM: its distributions and files by name, and its platform over a CPU build of vLLM.

With ``add_vendor_stack`` a backend lists itself as ready. With a ``VLLMPlatformStandIn`` it also opens and computes,
where a CPU build of vLLM is installed: vLLM prefers platforms of plug-ins, so the vendor's table, its checks, its
worker class and its names are used for real. Kernels, KV layouts, memory fractions, sleep and connectors are those of
the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import field, frozen
from sage_infer.discovery.readiness import ROOT_VARIABLE
from sage_infer.specs import Need

from sage_infer_testing.stand_in import add_distribution

__all__ = ["VLLMPlatformStandIn", "add_vendor_stack"]


@frozen(kw_only=True)
class VLLMPlatformStandIn:
    """What a vendor's platform of vLLM says about itself.

    Attributes:
        platform: the class, as ``vllm_vendor.platform:VendorPlatform``.
        device_type: vLLM's device type, such as ``npu``.
        visible_devices: environment variable that selects devices.
        builtin: name of the platform if it is built into the vendor's vLLM (``rocm``); empty otherwise.
        can_sleep: whether it claims sleep mode.
    """

    platform: str
    device_type: str
    visible_devices: str
    builtin: str = ""
    can_sleep: bool = field(default=False)


_PLATFORM = '''"""A vendor's platform over the CPU build of vLLM."""
import os
import sys

from vllm.platforms.cpu import CpuPlatform


class {cls}(CpuPlatform):
    """Computes as the CPU does: vLLM's own branches for CPUs run. Says the vendor's names to the adapter."""

    device_name = {device_type!r}
    device_control_env_var = {visible_devices!r}

    @property
    def device_type(self):
        # vLLM itself passes it to torch, which has no such device here.
        return {device_type!r} if _adapter_asks() else "cpu"

    def is_sleep_mode_available(self):
        return {can_sleep}

    @classmethod
    def check_and_update_config(cls, vllm_config):
        # No vendor sets how processes start, and vLLM's own size of the KV cache is half of the machine's memory.
        method = os.environ.get("VLLM_WORKER_MULTIPROC_METHOD")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        super().check_and_update_config(vllm_config)
        if method is None:
            os.environ.pop("VLLM_WORKER_MULTIPROC_METHOD", None)
        else:
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = method


def _adapter_asks():
    return sys._getframe(2).f_globals.get("__name__", "").startswith("sage_infer_vllm")
'''
_BUILTIN = """

def is_builtin(self):
    return _adapter_asks()


{cls}.is_{builtin} = is_builtin
"""


_REGISTER = """
def register():
    return {platform!r}
"""


def add_vendor_stack(
    site: Path,
    root: Path,
    needs: Iterable[Need],
    versions: Mapping[str, str],
    *,
    device_nodes: Iterable[str] = (),
    platform: VLLMPlatformStandIn | None = None,
) -> dict[str, str]:
    """Add the metadata of a vendor's distributions, and empty files for drivers, toolkits and devices.

    Args:
        site: a folder for ``PYTHONPATH``.
        root: a folder for the files.
        needs: the backend's needs; their entry points belong to the distribution of the same need.
        versions: the distributions.
        device_nodes: the backend's device nodes.
        platform: the platform of vLLM; None adds metadata only.

    Returns:
        The environment variables with which this is the machine: ``PYTHONPATH`` and ``SAGE_INFER_ROOT``.
    """
    entries: dict[str, dict[str, str]] = {name: {} for name in versions}
    register = "vendor_plugin:register" if platform is None else _add_platform(site, platform)
    patterns = list(device_nodes)
    for need in needs:
        patterns += need.files[:1]
        if need.entry_point is not None:
            (name,) = need.distributions
            entries.setdefault(name, {})[need.entry_point] = register
    if platform is not None and platform.builtin:
        entries["vllm-builtin-platform"] = {f"vllm.platform_plugins:{platform.builtin}": register}
    for name, points in entries.items():
        add_distribution(site, name, versions.get(name, "0.0.0"), points)
    for pattern in patterns:
        file = root / pattern.replace("[0-9]*", "0").replace("*", "0").lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return {"PYTHONPATH": str(site), ROOT_VARIABLE: str(root)}


def _add_platform(site: Path, stand_in: VLLMPlatformStandIn) -> str:
    """Write the platform's module; returns its plug-in, as an entry point's value."""
    module, _, cls = stand_in.platform.partition(":")
    *packages, last = module.split(".")
    folder = site
    for package in packages:
        folder /= package
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    source = _PLATFORM.format(
        cls=cls, device_type=stand_in.device_type, visible_devices=stand_in.visible_devices,
        can_sleep=stand_in.can_sleep,
    )  # fmt: skip
    if stand_in.builtin:
        source += _BUILTIN.format(cls=cls, builtin=stand_in.builtin)
    (folder / f"{last}.py").write_text(source, "utf-8")
    plugin = _REGISTER.format(platform=f"{module}.{cls}")
    (site / "vllm_platform_stand_in.py").write_text(plugin, "utf-8")
    return "vllm_platform_stand_in:register"
