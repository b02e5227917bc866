"""What the tests of this package share: the sample models, and small models made on the spot."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as GgmlType
from hypothesis import settings
from sage_infer.discovery import model_specs
from sage_infer.errors import SageInferError
from sage_infer.models import add_model
from sage_infer_openvino.engine.paged_runner import PagedRunner
from sage_infer_openvino.models.prepare import PreparedDecoder, prepare_decoder

if "SAGE_RANDOM_EXAMPLES" not in os.environ:
    settings.load_profile("ci")  # of hypothesis: the same examples in each run, and no limit of time

DATA = Path(__file__).parent / "data"

sys.path.insert(0, str(Path(__file__).parent))  # for openvino_toy, whatever pytest's import mode


def _sample(name: str) -> Path:
    try:
        return add_model(model_specs()[name])
    except SageInferError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF in Q4_1."""
    return _sample("smollm2-135m")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The sentence-transformers folder of all-MiniLM-L6-v2."""
    return _sample("minilm")


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session keeps prepared models."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def reference() -> Callable[[str], list[dict[str, Any]]]:
    """Reads one of the files that ``data/make_greedy_reference.py`` wrote."""
    return lambda name: json.loads((DATA / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def prepared(smollm2_gguf: Path, cache_dir: Path) -> PreparedDecoder:
    return prepare_decoder(smollm2_gguf, cache_dir=cache_dir)


@pytest.fixture(scope="session")
def runner(prepared: PreparedDecoder) -> PagedRunner:
    """SmolLM2 in float32 with 128 blocks. Tests may use any block: none relies on what another left there."""
    return PagedRunner(prepared.xml, 128)


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Writes a llama GGUF of a few kilobytes with random weights.

    ``matrices`` is the type of every matrix, ``tokenizer`` overrides metadata below ``tokenizer.``,
    ``metadata`` overrides the rest, ``tensors`` adds or replaces float32 tensors by their GGUF name.
    """

    def write(
        matrices: GgmlType = GgmlType.F32,
        *,
        name: str = "tiny.gguf",
        architecture: str = "llama",
        hidden: int = 64,
        heads: int = 2,
        kv_heads: int = 1,
        layers: int = 2,
        metadata: dict[str, Any] | None = None,
        tensors: dict[str, np.ndarray] | None = None,
    ) -> Path:
        rng = np.random.default_rng(7)
        path = tmp_path / name
        writer = gguf.GGUFWriter(str(path), architecture)
        letters = [chr(code) for code in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]]
        letters += [chr(0x100 + index) for index in range(256 - len(letters))]
        tokens = [*letters, "he", "ll", "Ġw", "<|end|>", "<think>"]
        head_dim, intermediate = hidden // heads, 2 * hidden
        values: dict[str, Any] = {
            f"{architecture}.block_count": layers,
            f"{architecture}.context_length": 128,
            f"{architecture}.embedding_length": hidden,
            f"{architecture}.feed_forward_length": intermediate,
            f"{architecture}.attention.head_count": heads,
            f"{architecture}.attention.head_count_kv": kv_heads,
            f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{architecture}.rope.freq_base": 10000.0,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "llama-bpe",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 4],
            "tokenizer.ggml.merges": ["h e", "l l", "Ġ w"],
            "tokenizer.ggml.eos_token_id": len(tokens) - 2,
            "tokenizer.ggml.add_bos_token": False,
            **(metadata or {}),
        }
        for key, value in values.items():
            if value is not None:
                _add(writer, key, value)
        shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(tokens), hidden), "output_norm": (hidden,)}
        for layer in range(layers):
            shapes |= {
                f"blk.{layer}.attn_norm": (hidden,),
                f"blk.{layer}.attn_q": (heads * head_dim, hidden),
                f"blk.{layer}.attn_k": (kv_heads * head_dim, hidden),
                f"blk.{layer}.attn_v": (kv_heads * head_dim, hidden),
                f"blk.{layer}.attn_output": (hidden, heads * head_dim),
                f"blk.{layer}.ffn_norm": (hidden,),
                f"blk.{layer}.ffn_gate": (intermediate, hidden),
                f"blk.{layer}.ffn_up": (intermediate, hidden),
                f"blk.{layer}.ffn_down": (hidden, intermediate),
            }
        for tensor, shape in shapes.items():
            array = rng.normal(0, 0.2, shape).astype(np.float32)
            if len(shape) == 1:
                writer.add_tensor(f"{tensor}.weight", 1 + array)
            elif matrices in (GgmlType.F32, GgmlType.F16):
                dtype = np.float32 if matrices == GgmlType.F32 else np.float16
                writer.add_tensor(f"{tensor}.weight", array.astype(dtype))
            else:
                writer.add_tensor(
                    f"{tensor}.weight", gguf.quants.quantize(array, matrices), raw_dtype=matrices
                )
        for tensor, array in (tensors or {}).items():
            writer.add_tensor(tensor, array.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
