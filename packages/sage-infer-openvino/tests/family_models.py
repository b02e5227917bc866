"""Tiny models of every family, as a Hugging Face folder and as a GGUF, always with the same weights.

Weights come from a seed, so that neither they nor torch are needed to test against what transformers computed with
them (``data/families.json``, written by ``data/make_family_references.py``). The GGUF has the layout that llama.cpp's
converter gives it (its ``conversion/*.py``), written out here once more so that reader and writer share no code.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from attrs import Factory, frozen

Array = npt.NDArray[np.float32]

VOCAB, HIDDEN, WIDE, HEADS, KV_HEADS = 96, 64, 96, 4, 2
PROMPT_LENGTH, STEPS = 70, 24
_TOKENS = [*(chr(code) for code in range(0x21, 0x21 + VOCAB - 4)), "ab", "<s>", "</s>", "<pad>"]


@frozen(kw_only=True)
class Case:
    """``config`` is added to what all have in common; ``gguf`` is the architecture in a GGUF, ``metadata`` its keys
    without that prefix, ``None`` where llama.cpp has no such model.
    """

    name: str
    config: dict[str, Any]
    gguf: str | None = None
    metadata: dict[str, Any] = Factory(dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The whole ``config.json``."""
        common = {
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "intermediate_size": WIDE,
            "num_hidden_layers": 3,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "bos_token_id": VOCAB - 3,
            "eos_token_id": VOCAB - 2,
            "pad_token_id": VOCAB - 1,
            "torch_dtype": "float32",
        }
        return {**common, **self.config}

    @property
    def head_dim(self) -> int:
        return int(self.settings.get("head_dim", HIDDEN // HEADS))

    @property
    def prompt(self) -> list[int]:
        return _rng(self.name + "/prompt").integers(0, VOCAB - 3, PROMPT_LENGTH).tolist()


def _kind(model_type: str, class_name: str, **config: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [class_name], **config}


def _yarn(**more: Any) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **more}


_YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_SHORT = [1.0, 1.1, 1.3, 1.7, 2.0, 2.5]
_GELU = "gelu_pytorch_tanh"

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(
            name="llama",
            config=_kind(
                "llama",
                "LlamaForCausalLM",
                rope_theta=1000.0,
                rope_scaling={**_LLAMA3, "original_max_position_embeddings": 64},
            ),
            gguf="llama",
            metadata={"rope.freq_base": 1000.0},
        ),
        Case(
            name="mistral",
            config=_kind("mistral", "MistralForCausalLM", head_dim=32, sliding_window=24, rope_theta=10000.0),
        ),
        Case(
            name="mistral without window",
            config=_kind(
                "mistral", "MistralForCausalLM", head_dim=32, sliding_window=None, rope_theta=10000.0
            ),
            gguf="llama",
        ),
        Case(
            name="ministral",
            config=_kind(
                "ministral",
                "MinistralForCausalLM",
                head_dim=32,
                sliding_window=16,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            ),
        ),
        Case(
            name="qwen2",
            config=_kind("qwen2", "Qwen2ForCausalLM", tie_word_embeddings=True, rope_theta=1e6),
            gguf="qwen2",
            metadata={"rope.freq_base": 1e6},
        ),
        Case(
            name="qwen2 with yarn",
            config=_kind("qwen2", "Qwen2ForCausalLM", rope_theta=10000.0, rope_scaling=_yarn()),
            gguf="qwen2",
            metadata=_YARN,
        ),
        Case(
            name="qwen2 with windows",
            config=_kind(
                "qwen2", "Qwen2ForCausalLM", use_sliding_window=True, sliding_window=20, max_window_layers=1
            ),
        ),
        Case(
            name="qwen3",
            config=_kind("qwen3", "Qwen3ForCausalLM", head_dim=32, rope_theta=1e6),
            gguf="qwen3",
            metadata={"rope.freq_base": 1e6},
        ),
        Case(
            name="phi3",
            config=_kind("phi3", "Phi3ForCausalLM", sliding_window=24),
            gguf="phi3",
            metadata={"attention.sliding_window": 24},
        ),
        Case(
            name="phi4-mini",
            config=_kind(
                "phi3",
                "Phi3ForCausalLM",
                tie_word_embeddings=True,
                partial_rotary_factor=0.75,
                original_max_position_embeddings=128,
                rope_scaling={"type": "longrope", "short_factor": _SHORT, "long_factor": [4.0] * 6},
            ),
            gguf="phi3",
            metadata={
                "attention.sliding_window": 0,
                "rope.scaling.original_context_length": 128,
                "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(2) / np.log(128))),
            },
        ),
        Case(
            name="gemma",
            config=_kind(
                "gemma",
                "GemmaForCausalLM",
                head_dim=32,
                num_key_value_heads=1,
                hidden_act="gelu",
                tie_word_embeddings=True,
            ),
            gguf="gemma",
        ),
        Case(
            name="gemma2 without soft cap",
            config=_kind(
                "gemma2",
                "Gemma2ForCausalLM",
                head_dim=32,
                hidden_activation=_GELU,
                tie_word_embeddings=True,
                sliding_window=16,
                query_pre_attn_scalar=20,
                attn_logit_softcapping=None,
                final_logit_softcapping=5.0,
            ),
        ),
        Case(
            name="gemma3",
            config=_kind(
                "gemma3_text",
                "Gemma3ForCausalLM",
                num_hidden_layers=7,
                head_dim=32,
                hidden_activation=_GELU,
                tie_word_embeddings=True,
                sliding_window=16,
                query_pre_attn_scalar=32,
                rope_theta=1e6,
                rope_local_base_freq=10000.0,
                rope_scaling={"rope_type": "linear", "factor": 8.0},
            ),
            gguf="gemma3",
            metadata={
                "attention.sliding_window": 16,
                "rope.freq_base": 1e6,
                "rope.scaling.type": "linear",
                "rope.scaling.factor": 8.0,
            },
        ),
        Case(
            name="smollm3",
            config=_kind(
                "smollm3", "SmolLM3ForCausalLM", num_hidden_layers=4, tie_word_embeddings=True, rope_theta=5e6
            ),
            gguf="smollm3",
            metadata={"rope.freq_base": 5e6},
        ),
        Case(
            name="granite",
            config=_kind(
                "granite",
                "GraniteForCausalLM",
                tie_word_embeddings=True,
                embedding_multiplier=6.0,
                logits_scaling=4.0,
                residual_multiplier=0.3,
                attention_multiplier=0.1,
            ),
            gguf="granite",
            metadata={
                "embedding_scale": 6.0,
                "logit_scale": 4.0,
                "residual_scale": 0.3,
                "attention.scale": 0.1,
            },
        ),
        Case(
            name="olmo2",
            config=_kind("olmo2", "Olmo2ForCausalLM", rope_theta=500000.0),
            gguf="olmo2",
            metadata={"rope.freq_base": 500000.0},
        ),
        Case(
            name="olmo3",
            config=_kind(
                "olmo3",
                "Olmo3ForCausalLM",
                num_hidden_layers=4,
                sliding_window=16,
                rope_theta=500000.0,
                rope_scaling=_yarn(),
            ),
            gguf="olmo2",
            metadata={"rope.freq_base": 500000.0, "attention.sliding_window": 16, **_YARN},
        ),
    )
}


def tensors(case: Case) -> dict[str, Array]:
    """All weights by the names that a Hugging Face folder has them under."""
    config, kind = case.settings, case.config["model_type"]
    q, kv = HEADS * case.head_dim, config["num_key_value_heads"] * case.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    for layer in range(config["num_hidden_layers"]):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        if kind == "phi3":
            shapes[f"{attention}.qkv_proj.weight"] = (q + 2 * kv, HIDDEN)
            shapes[f"{mlp}.gate_up_proj.weight"] = (2 * WIDE, HIDDEN)
        else:
            for name, rows in {"q": q, "k": kv, "v": kv}.items():
                shapes[f"{attention}.{name}_proj.weight"] = (rows, HIDDEN)
                if kind == "qwen2":
                    shapes[f"{attention}.{name}_proj.bias"] = (rows,)
            shapes[f"{mlp}.gate_proj.weight"] = shapes[f"{mlp}.up_proj.weight"] = (WIDE, HIDDEN)
        shapes[f"{attention}.o_proj.weight"] = (HIDDEN, q)
        shapes[f"{mlp}.down_proj.weight"] = (HIDDEN, WIDE)
        if kind in ("qwen3", "gemma3_text"):
            shapes[f"{attention}.q_norm.weight"] = shapes[f"{attention}.k_norm.weight"] = (case.head_dim,)
        if kind in ("olmo2", "olmo3"):
            shapes[f"{attention}.q_norm.weight"], shapes[f"{attention}.k_norm.weight"] = (q,), (kv,)
        norms = ["post_attention_layernorm"]
        norms += ["input_layernorm"] if not kind.startswith("olmo") else []
        norms += ["post_feedforward_layernorm"] if kind.startswith(("olmo", "gemma2", "gemma3")) else []
        norms += ["pre_feedforward_layernorm"] if kind.startswith(("gemma2", "gemma3")) else []
        shapes |= {f"model.layers.{layer}.{name}.weight": (HIDDEN,) for name in norms}
    return {name: _values(case, name, shape) for name, shape in shapes.items()}


def _values(case: Case, name: str, shape: tuple[int, ...]) -> Array:
    noise = _rng(f"{case.name}/{name}").normal(0, 1, shape)
    offset = (
        1 if case.config["model_type"].startswith("gemma") else 0
    )  # Gemma stores a norm's weights less one
    if name == "model.norm.weight":
        # Of both signs: a model that reads logits from its embeddings would otherwise repeat its last token.
        values = 1.2 * noise - offset
    elif name.endswith("norm.weight"):
        values = 1 + 0.2 * noise - offset
    elif name.endswith("bias"):
        values = 0.5 * noise
    elif "embed_tokens" in name:
        # Families that scale embeddings up, or read logits from them, are kept at ordinary sizes.
        values = noise * (0.15 if case.settings["tie_word_embeddings"] else 1.0)
    else:
        values = noise * 1.5 / np.sqrt(shape[1])
    return values.astype(np.float32)


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def write_folder(case: Case, folder: Path) -> Path:
    """A Hugging Face folder that transformers reads too."""
    folder.mkdir(parents=True, exist_ok=True)
    header, body, at = {}, [], 0
    for name, array in tensors(case).items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        body.append(array.tobytes())
        at += array.nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(body))
    (folder / "config.json").write_text(json.dumps(case.settings))
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(_TOKENS)},
            "merges": ["a b"],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def write_gguf(case: Case, path: Path, **options: Any) -> Path:
    """The GGUF that llama.cpp's converter would make of it; ``options`` are ``GGUFWriter``'s."""
    assert case.gguf is not None
    config = case.settings
    writer = gguf.GGUFWriter(str(path), case.gguf, **options)
    kv_heads = config["num_key_value_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if "head_dim" in config:
        writer.add_key_length(case.head_dim)
        writer.add_value_length(case.head_dim)
    if not case.gguf.startswith("gemma"):
        writer.add_rope_dimension_count(int(case.head_dim * config.get("partial_rotary_factor", 1.0)))
    for key, value in case.metadata.items():
        adders = {
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        add = adders[type(value)]
        add(f"{case.gguf}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(_TOKENS)
    writer.add_token_types([1] * (VOCAB - 3) + [3] * 3)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(VOCAB - 3)
    writer.add_eos_token_id(VOCAB - 2)
    writer.add_pad_token_id(VOCAB - 1)
    writer.add_add_bos_token(False)
    for name, array in _gguf_tensors(case):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_tensors(case: Case) -> Iterator[tuple[str, Array]]:
    architecture = gguf.MODEL_ARCH(next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == case.gguf))
    names = gguf.get_tensor_name_map(architecture, case.settings["num_hidden_layers"])
    # The architectures whose q and k llama.cpp rotates as pairs of neighbours.
    interleaved = case.gguf in ("llama", "granite", "smollm3")
    for name, array in tensors(case).items():
        stem, suffix = name.rsplit(".", 1)
        new = names.get_name(stem)
        assert new is not None, name
        if name.endswith("norm.weight") and case.config["model_type"].startswith("gemma"):
            array = array + 1
        if interleaved and stem.endswith(("q_proj", "k_proj")):
            array = _interleave(
                array, HEADS if stem.endswith("q_proj") else case.settings["num_key_value_heads"]
            )
        yield f"{new}.{suffix}", array
    scaling = case.settings.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(case)
    if "short_factor" in scaling:
        yield "rope_factors_long.weight", np.asarray(scaling["long_factor"], np.float32)
        yield "rope_factors_short.weight", np.asarray(scaling["short_factor"], np.float32)


def _interleave(array: Array, heads: int) -> Array:
    return (
        array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
        .swapaxes(1, 2)
        .reshape(array.shape)
    )


def _llama3_factors(case: Case) -> Array:
    scaling = case.settings["rope_scaling"]
    frequencies = case.settings["rope_theta"] ** (-np.arange(0, case.head_dim, 2) / case.head_dim)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32)


WRITERS: dict[str, Callable[[Case, Path], Path]] = {"hf": write_folder, "gguf": write_gguf}
