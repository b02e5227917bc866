"""Supported decoder families: one row each with tensor names and graph features.

A family is identified by ``model_type`` and ``architectures`` in a Hugging Face ``config.json``, and by
``general.architecture`` in a GGUF. The readers take dimensions, biases and multipliers from the files for every family;
a row holds facts that the files lack. Sources: transformers' ``configuration_*.py`` and ``modeling_*.py``, and
llama.cpp's ``conversion/*.py`` and ``src/models/*.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from attrs import Factory, frozen
from sage_infer.errors import ModelFileError, UnsupportedFeature

from sage_infer_openvino.models.decoder_weights import Activation, DecoderConfig, QkNorm

__all__ = [
    "FAMILIES",
    "Family",
    "gguf_family",
    "hf_family",
    "refuse",
    "rows_of",
    "unrotated_layers",
    "windows_of",
]

Windows = Literal["none", "all", "late", "alternating"]
"""Layers with an attention window: none; all; those from ``max_window_layers`` on; all but every ``period``-th. A
``layer_types`` in the config takes precedence.
"""

_LLAMA = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_PHI = {
    **_LLAMA,
    **dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj"),
    **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj"),
}
_GEMMA = {
    **_LLAMA,
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_OLMO = {
    **_LLAMA,
    "attn_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}

_GGUF = {
    "attn_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o": "attn_output",
    "attn_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "mlp_post_norm": "post_ffw_norm",
}
_GGUF_PHI = {**_GGUF, **dict.fromkeys(("q", "k", "v"), "attn_qkv"), "gate": "ffn_up"}

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_SOFT_CAP = "OpenVINO's paged attention does not support a soft cap on attention scores"
_BOTH_WAYS = "bidirectional attention is not supported: a decoder cannot attend to later tokens"


@frozen(kw_only=True)
class Family:
    """One row. ``tensors`` and ``gguf_tensors`` name a layer's modules; modules with the same name share one matrix,
    with rows in the order of :func:`rows_of`.
    """

    name: str
    """Display name."""
    key: str
    classes: Mapping[str, str] = Factory(dict)
    """``model_type`` to the class in ``architectures``."""
    gguf: tuple[str, ...] = ()
    tensors: Mapping[str, str] = Factory(lambda: _LLAMA)
    gguf_tensors: Mapping[str, str] = Factory(lambda: _GGUF)
    gguf_interleaves: bool = False
    """Whether llama.cpp rotates neighbouring values, so its converter reorders the rows of q and k."""
    defaults: Mapping[str, Any] = Factory(dict)
    """Defaults of transformers for missing keys of a ``config.json``, if they differ from Llama's."""
    refused: Mapping[str, str] = Factory(dict)
    """Keys that must be absent or off, in both file formats, with the reason."""
    activation: Activation = "silu"
    """Default for files without an activation, which includes every GGUF."""
    activations: Mapping[str, Activation] = Factory(lambda: _ACTIVATIONS)
    """Activations by transformers' names."""
    qk_norm: QkNorm = "none"
    input_norms: bool = True
    output_norms: bool = False
    offset_norms: bool = False
    """Whether Hugging Face folders store norm weights minus one."""
    scales_embedding: bool = False
    """Whether embeddings are multiplied by the square root of the hidden size."""
    windows: Windows = "none"
    period: int = 0
    local_rotary: bool = False
    """Whether layers with a window have their own, unscaled rotary embedding."""
    local_theta: float | None = None
    """Default rotary base of layers with a window; ``None``: the base of the other layers."""
    unrotated_period: int = 0
    """Default interval of layers without rotary embedding; 0: none."""
    gguf_query_scalars: Mapping[int, float] = Factory(dict)
    """``query_pre_attn_scalar`` by number of layers, if it is not the head dimension. llama.cpp distinguishes models of
    a family in the same way.
    """


FAMILIES: tuple[Family, ...] = (
    Family(
        name="Llama, SmolLM, SmolLM2",
        key="llama",
        classes={"llama": "LlamaForCausalLM"},
        gguf=("llama",),
        gguf_interleaves=True,
    ),
    Family(
        name="Mistral, Ministral",
        key="mistral",
        classes={"mistral": "MistralForCausalLM", "ministral": "MinistralForCausalLM"},
        defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
        windows="all",
    ),
    Family(
        name="Qwen 2, 2.5",
        key="qwen2",
        classes={"qwen2": "Qwen2ForCausalLM"},
        gguf=("qwen2",),
        defaults={
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
            "use_sliding_window": False,
            "max_window_layers": 28,
        },
        windows="late",
    ),
    Family(
        name="Qwen 3",
        key="qwen3",
        classes={"qwen3": "Qwen3ForCausalLM"},
        gguf=("qwen3",),
        defaults={
            "head_dim": 128,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
            "use_sliding_window": False,
            "max_window_layers": 28,
        },
        qk_norm="head",
        windows="late",
    ),
    Family(
        name="Phi-3, Phi-3.5-mini, Phi-4, Phi-4-mini",
        key="phi3",
        classes={"phi3": "Phi3ForCausalLM"},
        gguf=("phi3",),
        tensors=_PHI,
        gguf_tensors=_GGUF_PHI,
        defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
        windows="all",
    ),
    Family(
        name="Gemma",
        key="gemma",
        classes={"gemma": "GemmaForCausalLM"},
        gguf=("gemma",),
        defaults={"head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True},
        refused={"use_bidirectional_attention": _BOTH_WAYS},
        activation="gelu_tanh",
        # The first releases say gelu in config.json but use the tanh approximation.
        activations={**_ACTIVATIONS, "gelu": "gelu_tanh"},
        offset_norms=True,
        scales_embedding=True,
    ),
    Family(
        name="Gemma 2 without a soft cap on attention scores",
        key="gemma2",
        classes={"gemma2": "Gemma2ForCausalLM"},
        gguf=("gemma2",),
        tensors=_GEMMA,
        defaults={
            "head_dim": 256,
            "num_key_value_heads": 4,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        refused={"use_bidirectional_attention": _BOTH_WAYS, "attn_logit_softcapping": _SOFT_CAP},
        activation="gelu_tanh",
        output_norms=True,
        offset_norms=True,
        scales_embedding=True,
        windows="alternating",
        period=2,
    ),
    Family(
        name="Gemma 3 (text)",
        key="gemma3",
        classes={"gemma3_text": "Gemma3ForCausalLM", "gemma3": "Gemma3ForConditionalGeneration"},
        gguf=("gemma3",),
        tensors=_GEMMA,
        defaults={
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "rope_theta": 1e6,
        },
        refused={"use_bidirectional_attention": _BOTH_WAYS, "attn_logit_softcapping": _SOFT_CAP},
        activation="gelu_tanh",
        qk_norm="head",
        output_norms=True,
        offset_norms=True,
        scales_embedding=True,
        windows="alternating",
        period=6,
        local_rotary=True,
        local_theta=10000.0,
        gguf_query_scalars={62: 168.0},
    ),
    Family(
        name="SmolLM3",
        key="smollm3",
        classes={"smollm3": "SmolLM3ForCausalLM"},
        gguf=("smollm3",),
        gguf_interleaves=True,
        defaults={
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "rope_theta": 2e6,
            "tie_word_embeddings": True,
        },
        refused={"use_sliding_window": "sliding windows are not supported for this family"},
        unrotated_period=4,
    ),
    Family(
        name="Granite 3 (dense)",
        key="granite",
        classes={"granite": "GraniteForCausalLM"},
        gguf=("granite",),
        gguf_interleaves=True,
        defaults={"attention_multiplier": 1.0},
    ),
    Family(
        name="OLMo 2",
        key="olmo2",
        classes={"olmo2": "Olmo2ForCausalLM"},
        gguf=("olmo2",),
        tensors=_OLMO,
        defaults={"rms_norm_eps": 1e-5},
        qk_norm="width",
        input_norms=False,
        output_norms=True,
        # llama.cpp also uses this name for OLMo 3, which is OLMo 2 with windows; OLMo 2 itself has none.
        windows="alternating",
        period=4,
        local_rotary=True,
    ),
    Family(
        name="OLMo 3",
        key="olmo3",
        classes={"olmo3": "Olmo3ForCausalLM"},
        tensors=_OLMO,
        defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096, "rope_theta": 500000.0},
        qk_norm="width",
        input_norms=False,
        output_norms=True,
        windows="alternating",
        period=4,
        local_rotary=True,
    ),
)


def hf_family(model_type: object, architectures: Sequence[object], where: str) -> Family:
    """The row of a ``config.json``. Raises :class:`UnsupportedFeature`, with the supported ones, if there is none."""
    for family in FAMILIES:
        name = family.classes.get(str(model_type))
        if name is not None and all(architecture == name for architecture in architectures):
            return family
    found = ", ".join(map(str, architectures)) or str(model_type)
    supported = ", ".join(name for family in FAMILIES for name in family.classes.values())
    raise UnsupportedFeature(
        f"{where}: architecture {found!r} is not supported by the openvino backend; supported: {supported}"
    )


def gguf_family(architecture: object, where: str) -> Family:
    """The row of a ``general.architecture``. Raises :class:`UnsupportedFeature`, with the supported ones, if there is
    none.
    """
    for family in FAMILIES:
        if architecture in family.gguf:
            return family
    supported = ", ".join(name for family in FAMILIES for name in family.gguf)
    raise UnsupportedFeature(
        f"{where}: architecture {architecture!r} is not supported by the openvino backend; supported: {supported}"
    )


def rows_of(kind: str, names: Mapping[str, str], config: DecoderConfig) -> tuple[slice, int] | None:
    """Rows of a module in its matrix, and the total number of rows, if ``names`` maps several modules to one matrix.

    The order is q, k, v, and gate, up. ``None``: the module has its own matrix.
    """
    sizes = {
        "q": config.num_heads * config.head_dim,
        "k": config.num_kv_heads * config.head_dim,
        "v": config.num_kv_heads * config.head_dim,
        "gate": config.intermediate_size,
        "up": config.intermediate_size,
    }
    sharing = [other for other in sizes if kind in sizes and names[other] == names[kind]]
    if len(sharing) < 2:
        return None
    start = sum(sizes[other] for other in sharing[: sharing.index(kind)])
    return slice(start, start + sizes[kind]), sum(sizes[other] for other in sharing)


def refuse(family: Family, config: Mapping[str, Any], where: str) -> None:
    """Raise :class:`UnsupportedFeature` for the first enabled key of the family's ``refused``."""
    for key, meaning in family.refused.items():
        if value := config.get(key, family.defaults.get(key)):
            raise UnsupportedFeature(f"{where}: {key} is {value!r}: {meaning}; use another model")


def windows_of(
    family: Family, config: Mapping[str, Any], layers: int, length: int, where: str
) -> tuple[int, ...] | None:
    """``DecoderConfig.windows`` from ``layer_types`` or the family's rule, for texts of up to ``length`` tokens.

    ``config`` has the keys of a ``config.json``. Returns ``None`` if no window is shorter than the texts. Raises
    :class:`ModelFileError` if ``layer_types`` is not one known type per layer.
    """
    window = config.get("sliding_window") or 0
    if family.windows == "none" or not 0 < window < length or not config.get("use_sliding_window", True):
        return None
    windows = tuple(window if cut else 0 for cut in _window_layers(family, config, layers, where))
    return windows if any(windows) else None


def _window_layers(family: Family, config: Mapping[str, Any], layers: int, where: str) -> list[bool]:
    kinds = config.get("layer_types")
    if kinds is not None:
        known = ("sliding_attention", "full_attention")
        if not isinstance(kinds, list) or len(kinds) < layers or any(kind not in known for kind in kinds):
            raise ModelFileError(
                f"{where}: layer_types is {kinds!r}, expected {' or '.join(known)} for every layer"
            )
        return [kind == "sliding_attention" for kind in kinds[:layers]]
    if family.windows == "late":
        return [layer >= int(config["max_window_layers"]) for layer in range(layers)]
    period = int(config.get("sliding_window_pattern") or family.period)
    return [family.windows == "all" or bool((layer + 1) % period) for layer in range(layers)]


def unrotated_layers(family: Family, config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Layers without rotary embedding: those with 0 in ``no_rope_layers``, or those at the family's interval."""
    marks = config.get("no_rope_layers")
    if not family.unrotated_period:
        return ()
    if not isinstance(marks, list):
        period = config.get("no_rope_layer_interval") or family.unrotated_period
        return tuple(range(period - 1, layers, period))
    return tuple(layer for layer, rotated in enumerate(marks[:layers]) if not rotated)
