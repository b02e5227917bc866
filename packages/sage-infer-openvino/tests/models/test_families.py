"""Every family equals transformers, from folders and GGUF files; unsupported ones are rejected by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from family_models import CASES, STEPS, WRITERS, Case, write_folder, write_gguf
from openvino_toy import DATA
from sage_infer.errors import ModelFileError, SageInferError, UnsupportedFeature
from sage_infer_openvino.engine.paged_runner import PagedRunner, SequenceSlice
from sage_infer_openvino.models.decoder_graph import build_decoder, to_paged_attention
from sage_infer_openvino.models.decoder_weights import DecoderConfig, Weight
from sage_infer_openvino.models.families import FAMILIES
from sage_infer_openvino.models.gguf.model import GgufModel
from sage_infer_openvino.models.hf_model import HfModel
from sage_infer_openvino.models.prepare import prepare_decoder
from sage_infer_openvino.ov_runtime import ov

REFERENCES = {
    entry["name"]: entry for entry in json.loads((DATA / "families.json").read_text(encoding="utf-8"))
}
FORMS = [(name, form) for name, case in CASES.items() for form in ("hf", "gguf") if form == "hf" or case.gguf]
F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
WITHIN = 1e-4


def far(logits: Any, expected: list[float]) -> float:
    return float(np.abs(np.asarray(logits) - expected).max())


def written(case: Case, form: str, folder: Path) -> Path:
    return WRITERS[form](case, folder / ("folder" if form == "hf" else "model.gguf"))


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_logits_and_tokens_equal_transformers(name: str, form: str, tmp_path: Path) -> None:
    """As it is used: prepared, read back, a prompt in parts beside the same in one, then token by token."""
    case, reference = CASES[name], REFERENCES[name]
    prepared = prepare_decoder(
        written(case, form, tmp_path), cache_dir=tmp_path / "cache", weight_format="exact"
    )
    runner, prompt = PagedRunner(prepared.xml, 8), case.prompt
    parts, blocks = (33, 1, len(prompt) - 34), ([5, 1, 3], [0, 6, 2])
    past = 0
    for count in parts:
        logits = runner.step([SequenceSlice(prompt[past : past + count], past, blocks[0])])
        past += count
    assert far(logits[0], reference["logits"]) < WITHIN
    (whole,) = runner.step([SequenceSlice(prompt, 0, blocks[1])])
    assert far(whole, reference["logits"]) < WITHIN
    rows, chosen = [logits[0], whole], []
    for _ in range(STEPS):
        chosen.append([int(row.argmax()) for row in rows])
        new = zip(chosen[-1], blocks, strict=True)
        rows = list(runner.step([SequenceSlice([token], past, held) for token, held in new]))
        past += 1
    assert chosen == [[token, token] for token in reference["output"]]
    for row in rows:
        assert far(row, reference["last_logits"]) < WITHIN


@pytest.mark.parametrize("name", CASES)
def test_the_stateful_form_computes_the_same(name: str, tmp_path: Path) -> None:
    """Windows are in its masks, which the paged form does not have."""
    model = build_decoder(HfModel(write_folder(CASES[name], tmp_path)), "exact")
    request = ov.Core().compile_model(model, "CPU", F32).create_infer_request()
    prompt, past = CASES[name].prompt, 0
    for part in (prompt[:40], prompt[40:]):
        request.infer(
            {
                "input_ids": np.array([part], np.int64),
                "attention_mask": np.ones((1, past + len(part)), np.int64),
                "position_ids": np.arange(past, past + len(part), dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        past += len(part)
    assert far(request.get_tensor("logits").data[0, -1], REFERENCES[name]["logits"]) < WITHIN


@attrs.frozen
class Changed:
    """A model that is computed as if its config said something else."""

    model: HfModel
    config: DecoderConfig

    def weight(self, name: str) -> Weight:
        return self.model.weight(name)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"rope_factors": None}),
        ("mistral", {"windows": (0, 24, 24)}),
        ("mistral", {"windows": (25, 24, 24)}),
        ("qwen2", {"attention_bias": False}),
        ("qwen2 with yarn", {"rope_scale": 1.0}),
        ("qwen2 with yarn", {"rope_factors": None}),
        ("qwen3", {"qk_norm": "none"}),
        ("phi4-mini", {"rotary_dim": 10, "rope_factors": None}),
        ("phi4-mini", {"rope_scale": 1.0}),
        ("gemma", {"activation": "silu"}),
        ("gemma", {"embedding_scale": 1.0}),
        ("gemma2 without soft cap", {"attention_scale": None}),
        ("gemma2 without soft cap", {"logit_cap": None}),
        ("gemma3", {"local_rope_theta": None}),
        ("gemma3", {"output_norms": False}),
        ("smollm3", {"unrotated_layers": ()}),
        ("granite", {"residual_scale": 1.0}),
        ("granite", {"logit_scale": 1.0}),
        ("granite", {"attention_scale": None}),
        ("olmo2", {"qk_norm": "none"}),
        ("olmo3", {"local_rope_theta": None}),
    ],
)
def test_the_references_would_notice(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    """Each thing that a family adds moves the logits by far more than is allowed above."""
    model = HfModel(write_folder(CASES[name], tmp_path))
    runner = PagedRunner(build_decoder(Changed(model, attrs.evolve(model.config, **change)), "exact"), 4)
    logits = runner.step([SequenceSlice(CASES[name].prompt, 0, [0, 1, 2])])
    assert far(logits[0], REFERENCES[name]["logits"]) > 20 * WITHIN


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.gguf])
def test_both_kinds_of_file_are_one_model(name: str, tmp_path: Path) -> None:
    """Equal configs but for names, and equal weights."""
    folder = HfModel(write_folder(CASES[name], tmp_path / "hf"))
    file = GgufModel(write_gguf(CASES[name], tmp_path / "model.gguf"))
    for field in attrs.fields(DecoderConfig):
        ours, theirs = (getattr(model.config, field.name) for model in (folder, file))
        if field.name in ("name", "architecture"):
            continue
        if isinstance(theirs, float | tuple):
            theirs = pytest.approx(theirs, rel=1e-6)  # a GGUF's numbers are float32
        assert ours == theirs, field.name
    for kind in ("q", "k", "v", "o", "gate", "up", "down"):
        weights = [m.weight(f"layers.1.{kind}").dense() for m in (folder, file)]
        assert np.array_equal(*weights), kind


@pytest.mark.parametrize("name", ["qwen3", "phi4-mini", "gemma3"])
def test_openvino_recognizes_the_parts(name: str, tmp_path: Path) -> None:
    """Rotary embedding and norms become one operation each, so that bf16 does not round their insides."""
    model = build_decoder(HfModel(write_folder(CASES[name], tmp_path)), "exact")
    to_paged_attention(model)
    compiled = ov.Core().compile_model(model, "CPU", F32)
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops()]
    layers = CASES[name].settings["num_hidden_layers"]
    norms = {"qwen3": 4, "phi4-mini": 2, "gemma3": 6}[name] * layers + 1
    counts = {kind: kinds.count(kind) for kind in ("RoPE", "RMS", "PagedAttention")}
    assert counts == {"RoPE": 2 * layers, "RMS": norms, "PagedAttention": layers}


def changed(case: str, folder: Path, **config: Any) -> Path:
    """The folder of a case whose config.json says something else too."""
    write_folder(CASES[case], folder)
    (folder / "config.json").write_text(json.dumps({**CASES[case].settings, **config}))
    return folder


def test_a_part_of_a_larger_model_is_read(tmp_path: Path) -> None:
    """Gemma 3 from 4B on also sees; its text is in ``text_config`` and below a prefix, with keys left out."""
    case = CASES["gemma3"]
    write_folder(case, tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"model.', b'"language_model.model.')
    (tmp_path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + data[8 + length :]
    )
    plain = HfModel(write_folder(case, tmp_path / "plain"))
    text = {key: value for key, value in case.settings.items() if key not in ("architectures", "torch_dtype")}
    for key in ("tie_word_embeddings", "rope_theta", "hidden_activation", "rope_local_base_freq"):
        del text[key]
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    model = HfModel(tmp_path)
    assert attrs.evolve(model.config, name="") == attrs.evolve(plain.config, name="")
    assert np.array_equal(
        model.weight("layers.3.mlp_post_norm").dense(), plain.weight("layers.3.mlp_post_norm").dense()
    )


def test_version_5_spells_ropes_by_kind_of_layer(tmp_path: Path) -> None:
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    other = HfModel(write_folder(CASES["gemma3"], tmp_path / "x")).config
    new = HfModel(
        changed("gemma3", tmp_path / "x", rope_scaling=None, rope_theta=None, rope_parameters=ropes)
    ).config
    assert new == other


def test_windows_that_never_cut_are_none(tmp_path: Path) -> None:
    assert HfModel(changed("mistral", tmp_path, sliding_window=256)).config.windows is None
    assert HfModel(changed("mistral", tmp_path, sliding_window=255)).config.windows == (255, 255, 255)
    # transformers' own default, where the key is not there at all
    assert HfModel(changed("mistral without window", tmp_path)).config.windows is None


def test_longrope_ends_where_its_angles_would_change(tmp_path: Path) -> None:
    case = CASES["phi4-mini"]
    assert HfModel(write_folder(case, tmp_path)).config.max_sequence_length == 128
    assert GgufModel(write_gguf(case, tmp_path / "m.gguf")).config.max_sequence_length == 128


def test_layers_without_rotation_may_be_named(tmp_path: Path) -> None:
    assert HfModel(changed("smollm3", tmp_path, no_rope_layers=[0, 1, 1, 0])).config.unrotated_layers == (
        0,
        3,
    )
    assert HfModel(changed("smollm3", tmp_path, no_rope_layer_interval=2)).config.unrotated_layers == (1, 3)


REFUSED: list[tuple[str, dict[str, Any], type[SageInferError], str]] = [
    (
        "gemma2 without soft cap",
        {"attn_logit_softcapping": 50.0},
        UnsupportedFeature,
        "soft cap on attention scores",
    ),
    (
        "gemma3",
        {"use_bidirectional_attention": True},
        UnsupportedFeature,
        "bidirectional attention is not supported",
    ),
    ("smollm3", {"use_sliding_window": True}, UnsupportedFeature, "use_sliding_window is True"),
    (
        "qwen3",
        {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]},
        UnsupportedFeature,
        "Qwen3Moe",
    ),
    ("qwen3", {"architectures": ["Qwen3ForSequenceClassification"]}, UnsupportedFeature, "Phi3ForCausalLM"),
    ("mistral", {"hidden_act": "gelu"}, UnsupportedFeature, "activation 'gelu'.*supported: silu"),
    ("ministral", {"layer_types": ["chunked_attention"] * 3}, ModelFileError, "layer_types is"),
    ("ministral", {"layer_types": ["full_attention"]}, ModelFileError, "for every layer"),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, UnsupportedFeature, "'dynamic'"),
    (
        "llama",
        {"rope_scaling": {"rope_type": "linear"}},
        ModelFileError,
        "factor of rotary scaling 'linear' is None",
    ),
    (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0}},
        UnsupportedFeature,
        "plain yarn",
    ),
    (
        "gemma3",
        {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "linear"}}},
        UnsupportedFeature,
        "'linear' in layers with a window",
    ),
    ("granite", {"residual_multiplier": "x"}, ModelFileError, "residual_multiplier is 'x'"),
    ("phi3", {"intermediate_size": 90}, ModelFileError, "gate_up_proj.weight has 192 rows, expected 180"),
]


@pytest.mark.parametrize(("case", "config", "error", "says"), REFUSED)
def test_folders_that_are_refused(
    case: str, config: dict[str, Any], error: type[SageInferError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says) as caught:
        build_decoder(HfModel(changed(case, tmp_path, **config)), "exact")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("case", "metadata", "says"),
    [
        ("gemma", {"use_bidirectional_attention": 1}, "bidirectional attention is not supported"),
        ("qwen2 with yarn", {"rope.scaling.yarn_log_multiplier": 0.1}, "plain yarn"),
        ("llama", {"rope.dimension_count": 8}, "partial rotary embedding"),
        ("qwen2", {"expert_count": 4}, "mixture of experts"),
    ],
)
def test_files_that_are_refused(case: str, metadata: dict[str, Any], says: str, tmp_path: Path) -> None:
    other = attrs.evolve(CASES[case], metadata={**CASES[case].metadata, **metadata})
    with pytest.raises(UnsupportedFeature, match=says):
        GgufModel(write_gguf(other, tmp_path / "m.gguf"))


def test_gemma_2_as_llama_cpp_writes_it_is_refused_for_its_cap(tiny_gguf: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedFeature, match=r"attn_logit_softcapping is 50\.0: .*soft cap"):
        GgufModel(tiny_gguf(architecture="gemma2"))


def test_the_largest_gemma_3_scales_its_queries_by_another_width(tmp_path: Path) -> None:
    """Its GGUF does not say so; 62 layers do (llama.cpp's ``gemma3.cpp``)."""
    case = attrs.evolve(CASES["gemma3"], config={**CASES["gemma3"].config, "num_hidden_layers": 62})
    config = GgufModel(write_gguf(case, tmp_path / "m.gguf")).config
    assert config.attention_scale == pytest.approx(168**-0.5)


def test_windows_may_be_named_in_a_gguf(tmp_path: Path) -> None:
    def windows(**metadata: Any) -> Any:
        case = attrs.evolve(CASES["gemma3"], metadata={**CASES["gemma3"].metadata, **metadata})
        return GgufModel(write_gguf(case, tmp_path / "m.gguf")).config.windows

    assert windows() == (16,) * 5 + (0, 16)
    assert windows(**{"attention.sliding_window_pattern": 2}) == (16, 0) * 3 + (16,)
    named = [True, False, False, True, True, False, False]
    assert windows(**{"attention.sliding_window_pattern": named}) == (16, 0, 0, 16, 16, 0, 0)


def test_every_family_is_tested() -> None:
    tested = {case.config["model_type"] for case in CASES.values()} | {"gemma3"}
    assert {kind for family in FAMILIES for kind in family.classes} == tested
    assert {name for family in FAMILIES for name in family.gguf} - {"gemma2"} == {
        case.gguf for case in CASES.values() if case.gguf
    }


def test_the_readme_lists_them() -> None:
    readme = (DATA / "../../README.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        for name in (*family.classes.values(), *family.gguf):
            assert f"`{name}`" in readme
