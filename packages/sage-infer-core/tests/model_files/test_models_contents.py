"""What a path holds: models of each kind, and the many ways not to be one."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.errors import ModelFileError
from sage_infer.models import inspect_model


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(
    path: Path, architecture: str = "llama", version: int = 3, first_key: str = "general.architecture"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = b"GGUF" + struct.pack("<IQQ", version, 0, 1) + string(first_key)
    path.write_bytes(head + struct.pack("<I", 8) + string(architecture))
    return path


def folder(
    path: Path, weights: str = "model.safetensors", files: tuple[str, ...] = (), **config: Any
) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for name in (weights, *files):
        if name:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"[]")
    return path


def refused(path: Path, match: str) -> None:
    with pytest.raises(ModelFileError, match=match) as caught:
        inspect_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- GGUF


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "llm"), ("bert", "embedding"), ("nomic-bert", "embedding")]
)
def test_gguf(tmp_path: Path, architecture: str, kind: str) -> None:
    files = inspect_model(gguf(tmp_path / "m.gguf", architecture))
    assert (files.path, files.model_type) == (tmp_path / "m.gguf", kind)


def test_gguf_whose_first_key_is_another_one(tmp_path: Path) -> None:
    assert inspect_model(gguf(tmp_path / "a.gguf", "bert", first_key="general.name")).model_type == "llm"
    assert inspect_model(gguf(tmp_path / "b.gguf", first_key="k" * 600)).model_type == "llm"


def test_what_is_no_gguf(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_text("hello, I am text\n")
    refused(file, r"is not a GGUF model: it looks like text, but GGUF files start with b'GGUF'")
    file.write_bytes(b"PK\x03\x04\xff\xfe\x00")
    refused(file, r"is not a GGUF model: it starts with b'PK\\x03\\x04'")
    file.write_bytes(b"")
    refused(file, "is empty")
    file.write_bytes(b"GGUF\x03\0\0\0")
    refused(file, "is truncated: 8 bytes")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(file, "Git LFS pointer")
    gguf(file, version=1)
    refused(file, "is GGUF version 1")
    refused(tmp_path / "none.gguf", "cannot be read: No such file")


@given(st.binary(max_size=600))
def test_no_bytes_do_anything_but_pass_or_be_refused(data: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        for content in (data, b"GGUF\x03\0\0\0" + data):
            Path(file.name).write_bytes(content)
            message = file.name
            try:
                inspect_model(Path(file.name))
            except ModelFileError as error:
                message = str(error)
            assert file.name in message


def test_folder_with_one_gguf(tmp_path: Path) -> None:
    file = gguf(tmp_path / "m.gguf")
    assert inspect_model(tmp_path).path == file
    folder(tmp_path, weights="")  # repositories of GGUF files often carry a config.json
    assert inspect_model(tmp_path).path == file


def test_folder_with_several_gguf_lists_them(tmp_path: Path) -> None:
    for name in ("a-Q4.gguf", "a-Q8.gguf"):
        gguf(tmp_path / name)
    refused(tmp_path, r"holds 2 GGUF files; pass the path of one of them: a-Q4\.gguf, a-Q8\.gguf")


def test_split_gguf_is_one_model(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        gguf(tmp_path / f"big-{number:05}-of-00003.gguf")
    assert inspect_model(tmp_path).path.name == "big-00001-of-00003.gguf"
    (tmp_path / "big-00001-of-00003.gguf").unlink()
    refused(tmp_path, r"lacks 1 part\(s\) of its model: big-00001-of-00003\.gguf")
    gguf(tmp_path / "other.gguf")
    refused(tmp_path, "holds 3 GGUF files")


# --- folders in Hugging Face layout


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("LlamaForCausalLM", "llm"),
        ("GPT2LMHeadModel", "llm"),
        ("T5ForConditionalGeneration", "llm"),
        ("BertModel", "embedding"),
        ("XLMRobertaForSequenceClassification", "reranker"),
        ("Unheard", None),
    ],
)
def test_kind_by_architecture(tmp_path: Path, architecture: str, kind: str | None) -> None:
    files = inspect_model(folder(tmp_path, architectures=[architecture]))
    assert (files.path, files.model_type) == (tmp_path, kind)


def test_kind_by_other_signs(tmp_path: Path) -> None:
    causal = folder(tmp_path / "a", files=("modules.json",), architectures=["Qwen3ForCausalLM"])
    assert inspect_model(causal).model_type == "embedding"
    vision = folder(tmp_path / "b", architectures=["XForConditionalGeneration"], vision_config={})
    assert inspect_model(vision).model_type == "multimodal"
    assert inspect_model(folder(tmp_path / "c", architectures="oops")).model_type is None


def test_embedding_details(tmp_path: Path) -> None:
    folder(tmp_path, files=("modules.json",), architectures=["BertModel"], hidden_size=384)
    files = inspect_model(tmp_path)
    assert (files.embedding_dim, files.pooling_type) == (384, None)
    (tmp_path / "1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": 128,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_cls_token": False,
    }
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    files = inspect_model(tmp_path)
    assert (files.embedding_dim, files.pooling_type) == (128, "mean")
    dense = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "modules.json").write_text(json.dumps([dense]))
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps({"in_features": 128, "out_features": 64}))
    assert inspect_model(tmp_path).embedding_dim == 64
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(ModelFileError, match=r"modules\.json cannot be read"):
        inspect_model(tmp_path)


def test_reranker_details(tmp_path: Path) -> None:
    architectures = ["BertForSequenceClassification"]
    folder(tmp_path, architectures=architectures, max_position_embeddings=512)
    assert inspect_model(tmp_path).max_pair_length == 512
    folder(tmp_path, architectures=architectures, max_position_embeddings="512")
    assert inspect_model(tmp_path).max_pair_length is None


@pytest.mark.parametrize(
    "weights", ["pytorch_model.bin", "openvino_model.xml", "onnx/model.onnx", "model.onnx"]
)
def test_other_weights(tmp_path: Path, weights: str) -> None:
    assert inspect_model(folder(tmp_path, weights, architectures=["BertModel"])).path == tmp_path


def test_folders_without_a_model(tmp_path: Path) -> None:
    refused(tmp_path, "is an empty folder")
    (tmp_path / "readme.txt").write_text("x")
    refused(tmp_path, r"is not a model: it has neither a config\.json nor a \.gguf file")
    folder(tmp_path, weights="")
    refused(tmp_path, r"has a config\.json but no weights")


@pytest.mark.parametrize(
    ("text", "match"), [("{", "is not JSON"), ("[1]", "must hold a JSON object, got a list")]
)
def test_broken_config_json(tmp_path: Path, text: str, match: str) -> None:
    folder(tmp_path)
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, match)


def test_incomplete_weights(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    folder(tmp_path, "m-1.safetensors", architectures=["LlamaForCausalLM"])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path, r"is incomplete: 1 of 2 weight files missing: m-2\.safetensors")
    (tmp_path / "m-2.safetensors").write_bytes(b"x")
    assert inspect_model(tmp_path).model_type == "llm"
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert inspect_model(tmp_path).model_type == "llm"


def test_weights_that_git_lfs_left_behind(tmp_path: Path) -> None:
    folder(tmp_path, architectures=["LlamaForCausalLM"])
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(tmp_path, "Git LFS pointer, not weights")


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    folder(tmp_path, architectures=["LlamaForCausalLM"])
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, "cannot be read")
