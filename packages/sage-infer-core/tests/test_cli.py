"""The ``sage`` command as a person and a program meet it: a process, its output, its exit code."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Sage


@pytest.mark.parametrize(
    "path",
    [
        "",
        "infer",
        "infer backend",
        "infer schema",
        "infer config",
        "infer model",
        "infer generate",
        "toy",
        "toy greet",
    ],
)
def test_every_level_has_help(sage: Sage, path: str) -> None:
    done = sage(*path.split(), "--help")
    assert done.returncode == 0
    assert "Usage: sage" in done.stdout


def test_help_lists_commands_of_plugins(sage: Sage) -> None:
    assert "toy" in sage("--help").stdout
    assert sage("toy", "greet", "--name", "Ada").stdout == "hello Ada\n"


def test_commands_of_wheels_that_are_missing_or_off_name_the_wheel(sage: Sage) -> None:
    is_installed = any(one.name == "sage-infer-hal" for one in importlib.metadata.distributions())
    told = (
        "is part of sage-infer-hal, which SAGE_INFER_DISABLE or plugins.disabled switches off"
        if is_installed
        else "comes with another wheel: pip install sage-infer-hal"
    )
    for words in (("infer", "hal"), ("infer", "hal", "show")):
        line = sage.fails(*words, code=3, SAGE_INFER_DISABLE="hal")
        assert line.endswith(f"`sage infer hal` {told}")


def test_a_group_of_a_plugin_has_the_help_that_one_of_its_commands_gives(sage: Sage) -> None:
    assert "Play." in sage("--help").stdout
    assert "Play." in sage("toy", "--help").stdout


def test_a_group_alone_shows_its_help(sage: Sage) -> None:
    assert "backend" in sage("infer").stdout + sage("infer").stderr


def test_version(sage: Sage) -> None:
    assert sage("--version").stdout.startswith("sage-infer-core 0.")


def test_unknown_command(sage: Sage) -> None:
    line = sage.fails("infer", "bakend", code=2)
    assert line == "error: no command 'bakend' in `sage infer`; did you mean 'backend'?"
    assert "available: infer" in sage.fails("qqq", code=2)


def test_a_command_of_a_wheel_that_is_not_installed_names_it(sage: Sage) -> None:
    """The plug-in is switched off, as the wheel is installed where all wheels are tested together."""
    assert "sage-llm" in sage.fails("llm", code=3, SAGE_INFER_DISABLE="llm")


# --- backend


def test_backends_are_listed_with_their_states(sage: Sage) -> None:
    states = {row["name"]: row["state"] for row in sage.json("infer", "backend", "list")}
    toys = {name: state for name, state in states.items() if name.startswith("toy")}
    assert toys == {
        "toy": "ready", "toy-embedding": "ready", "toy-lost": "broken", "toy-needy": "missing-requirement",
        "toy-npu": "no-hardware",
    }  # fmt: skip
    text = sage("infer", "backend", "list").stdout
    assert "says the prompt backwards" in text
    assert "to fix toy-needy: pip install 'no-such-distribution>=2' 'attrs>=999'" in text


def test_a_broken_plugin_is_a_row_and_verbose_shows_why(sage: Sage, tmp_path: Path) -> None:
    info = tmp_path / "site" / "bad-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sage_infer.backends]\nbad = bad_plugin\n")
    (tmp_path / "site" / "bad_plugin.py").write_text("raise RuntimeError('no licence')")
    done = sage("infer", "backend", "list", "-v", PYTHONPATH=str(tmp_path / "site"))
    assert "bad" in done.stdout
    assert "RuntimeError: no licence" in done.stdout
    assert "Traceback" in done.stdout
    shown = sage("infer", "backend", "show", "bad", "-v", PYTHONPATH=str(tmp_path / "site"))
    assert "Traceback" in shown.stdout


def test_everything_that_a_backend_lacks_is_a_line_of_its_own(sage: Sage, tmp_path: Path) -> None:
    info = tmp_path / "site" / "npu-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: npu\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sage_infer.backends]\nnpu = npu_plugin\n")
    (tmp_path / "site" / "npu_plugin.py").write_text(
        "from sage_infer import BackendSpec, Need, hookimpl\n"
        "needs = (\n"
        "    Need(what='driver', files=('/no/such/driver',), install='install the driver'),\n"
        "    Need(what='torch for it', distributions={'torch-npu': '>=2'}, install='pip install torch-npu'),\n"
        ")\n"
        "@hookimpl\n"
        "def sage_infer_backends():\n"
        "    common = dict(factory='a:B', hardware={'cpu'}, needs=needs)\n"
        "    return [BackendSpec(name='npu', serves={'llm'}, **common),\n"
        "            BackendSpec(name='npu-embedding', serves={'embedding'}, **common)]\n"
    )
    path = str(tmp_path / "site")
    listed = sage("infer", "backend", "list", PYTHONPATH=path).stdout
    assert "lacks driver, torch for it" in listed
    assert (
        "to make npu, npu-embedding ready:\n  driver: install the driver\n  torch for it: pip install torch-npu\n"
        in listed
    )
    shown = sage("infer", "backend", "show", "npu", PYTHONPATH=path).stdout
    assert "driver: /no/such/driver does not exist; install the driver\n" in shown
    assert "torch for it: torch-npu>=2 not installed; pip install torch-npu\n" in shown
    rows = sage.json("infer", "backend", "list", PYTHONPATH=path)
    (row,) = [row for row in rows if row["name"] == "npu"]
    assert [missing["what"] for missing in row["missing"]] == ["driver", "torch for it"]


def test_disabled_plugins_are_named(sage: Sage) -> None:
    done = sage("infer", "backend", "list", SAGE_INFER_DISABLE="toy")
    assert "says the prompt backwards" not in done.stdout
    assert "disabled: toy" in done.stderr


def test_show_names_distribution_options_and_limits(sage: Sage) -> None:
    shown = sage.json("infer", "backend", "show", "toy")
    assert shown["distribution"]["name"] == "toy-sage"
    assert shown["options"] == {"delay": "ignored"}
    text = sage("infer", "backend", "show", "toy").stdout
    assert "toy-sage 1.0" in text
    assert "toy_engine:ToyBackend" in text


def test_an_unknown_backend_names_the_nearest(sage: Sage) -> None:
    assert "did you mean 'toy'?" in sage.fails("infer", "backend", "show", "toyy", code=3)


# --- schema


def test_schemas_are_listed_and_dumped(sage: Sage, tmp_path: Path) -> None:
    names = [row["name"] for row in sage.json("infer", "schema", "list")]
    assert "KVCacheSchema" in sage("infer", "schema", "list").stdout
    everything = json.loads(sage("infer", "schema", "dump").stdout)
    assert sorted(everything) == sorted(names)
    assert json.loads(sage("infer", "schema", "dump", "Usage").stdout) == everything["Usage"]
    sage("infer", "schema", "dump", "-o", "out")
    assert sorted(file.stem for file in (tmp_path / "out").iterdir()) == sorted(names)


def test_a_document_is_validated_with_every_problem_on_its_line(sage: Sage, tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text('{"temperature": 0.5}')
    assert (
        "is a valid SamplingParams" in sage("infer", "schema", "validate", "SamplingParams", str(good)).stdout
    )
    assert sage.json("infer", "schema", "validate", "SamplingParams", str(good))["valid"]
    done = sage("infer", "schema", "validate", "SamplingParams", "-", stdin='{"temperature": -1, "top_q": 1}')
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "$.top_q: is not a known key; did you mean 'top_p'?",
        "$.temperature: must be ≥ 0 and ≤ 100, got -1",
    ]
    done = sage("infer", "schema", "validate", "SamplingParams", "-", "--json", stdin='{"top_q": 1}')
    assert json.loads(done.stdout)["problems"][0]["path"] == "$.top_q"
    assert (
        sage(
            "infer", "schema", "validate", "SamplingParams", "-", "--tolerant", stdin='{"top_q": 1}'
        ).returncode
        == 0
    )


def test_unknown_schema_and_unreadable_document(sage: Sage) -> None:
    assert "did you mean Usage?" in sage.fails("infer", "schema", "dump", "Usag", code=2)
    assert "cannot read nowhere.json" in sage.fails(
        "infer", "schema", "validate", "Usage", "nowhere.json", code=2
    )


# --- generate, chat, embed


def test_generate_prints_the_answer(sage: Sage, gguf: Path) -> None:
    done = sage("infer", "generate", "abc", "-m", str(gguf))
    assert (done.returncode, done.stdout) == (0, "cba\n")
    assert sage("infer", "generate", "abc", "-m", str(gguf), "--system", "xy").stdout == "cba|yx\n"


def test_generate_takes_several_prompts_and_answers(sage: Sage, gguf: Path) -> None:
    done = sage("infer", "generate", "-", "-m", str(gguf), "-n", "2", stdin="ab\n\ncd\n")
    assert done.stdout.count("→ ba") == 2
    assert done.stdout.count("→ dc") == 2


def test_generate_as_json_has_everything(sage: Sage, gguf: Path) -> None:
    (answer,) = sage.json("infer", "generate", "ab", "-m", str(gguf), "--logprobs", "1", "-o", "delay=3")
    first, second = (
        {
            "token_id": ord(c),
            "text": c,
            "logprob": 0.0,
            "alternatives": [{"token_id": ord(c), "text": c, "logprob": 0.0}],
        }
        for c in "ba"
    )
    assert answer["choices"][0] == {
        "index": 0,
        "text": "ba",
        "token_ids": [98, 97],
        "finish_reason": "stop",
        "logprobs": [first, second],
    }
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 2,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
    }


BAD = {
    "missing model": (["-m", "nowhere.gguf"], 3, "nowhere.gguf"),
    "no such name": (["-m", "smollm2-135n"], 3, "smollm2-135m"),
    "a text file as GGUF": (["-m", "TEXT"], 2, "GGUF"),
    "prompt over the limit": (["-m", "GGUF", "--raw"], 2, "limit is 200"),
    "negative temperature": (["-m", "GGUF", "--temperature", "-1"], 2, "$.temperature: must be ≥ 0"),
    "unknown backend": (["-m", "GGUF", "-b", "toi"], 3, "did you mean 'toy'?"),
    "backend that is not ready": (["-m", "GGUF", "-b", "toy-npu"], 3, "looked for /nowhere/npu*"),
    "backend that does not load": (["-m", "GGUF", "-b", "toy-lost"], 3, "toy_engine:NoSuchThing"),
    "backend of another kind": (
        ["-m", "GGUF", "-b", "toy-embedding"],
        3,
        "serves embedding, reranker, not llm",
    ),
    "unknown option": (["-m", "GGUF", "-o", "delai=3"], 2, "did you mean 'delay'?"),
    "KV schema on a backend without": (["-m", "GGUF", "--kv-schema", "int8"], 2, "no option 'kv_schema'"),
    "unknown KV preset": (
        ["-m", "GGUF", "--kv-schema", "preset=int3"],
        2,
        "must be one of fp16, bf16, fp8, int8, int4",
    ),
    "unknown KV key": (["-m", "GGUF", "--kv-schema", "preset=int8,pagesize=3"], 2, "page_size"),
    "option without value": (["-m", "GGUF", "-o", "delay"], 2, "must be KEY=VALUE"),
    "unsupported": (["-m", "GGUF", "--json-schema", "SCHEMA"], 4, "no guided decoding"),
    "schema that is no JSON": (["-m", "GGUF", "--json-schema", "TEXT"], 2, "is not JSON"),
    "schema that is no object": (
        ["-m", "GGUF", "--json-schema", "LIST"],
        2,
        "must hold a JSON Schema object",
    ),
    "system message for raw text": (
        ["-m", "GGUF", "--raw", "--system", "x"],
        2,
        "--system requires a chat model",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(sage: Sage, gguf: Path, tmp_path: Path, case: str) -> None:
    arguments, code, message = BAD[case]
    files = {"TEXT": "notes.gguf", "SCHEMA": "schema.json", "LIST": "list.json"}
    (tmp_path / "notes.gguf").write_text("These are my notes, and no model.")
    (tmp_path / "schema.json").write_text("{}")
    (tmp_path / "list.json").write_text("[]")
    words = [str(gguf) if word == "GGUF" else files.get(word, word) for word in arguments]
    prompt = "x" * 300 if "over the limit" in case else "hi"
    assert message in sage.fails("infer", "generate", prompt, *words, code=code)


def test_no_prompt_at_all(sage: Sage) -> None:
    assert "no prompt given" in sage.fails("infer", "generate", "-", code=2)


def test_errors_for_programs_are_json(sage: Sage, gguf: Path) -> None:
    done = sage("infer", "generate", "hi", "-m", str(gguf), "-b", "toi", "--json")
    assert done.stdout == ""
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["code"] == "backend_unavailable"


def test_a_traceback_comes_with_debug_only(sage: Sage, gguf: Path) -> None:
    done = sage("infer", "generate", "hi", "-m", str(gguf), "-b", "toi", "--debug")
    assert "Traceback" in done.stderr
    assert done.returncode != 0


def test_chat_keeps_the_conversation(sage: Sage, gguf: Path) -> None:
    done = sage("infer", "chat", "-m", str(gguf), stdin="ab\n\ncd\n/what\n/reset\nef\n/exit\nnever\n")
    assert done.stdout.splitlines() == ["ba", "dc|ab|ba", "fe"]
    assert "unknown command /what" in done.stderr


def test_chat_that_outgrows_the_model_is_told_and_goes_on(sage: Sage, gguf: Path) -> None:
    done = sage("infer", "chat", "-m", str(gguf), stdin="x" * 300 + "\nab\n")
    assert "limit is 200; /reset starts a new conversation" in done.stderr
    assert done.stdout == "ba\n"


def test_embed_compares_texts(sage: Sage, encoder: Path) -> None:
    done = sage("infer", "embed", "ab", "cd", "a longer text " * 5, "-m", str(encoder))
    assert done.returncode == 0, done.stderr
    assert "1.000" in done.stdout
    assert "…" in done.stdout
    result = sage.json("infer", "embed", "ab", "-m", str(encoder))
    assert (result["dim"], len(result["vectors"])) == (2, 1)
    assert sage("infer", "embed", "ab", "-m", str(encoder)).returncode == 0


def test_rerank_sorts_documents(sage: Sage, cross_encoder: Path) -> None:
    words = ("infer", "rerank", "query", "a longer one", "short", "in between", "-m", str(cross_encoder))
    done = sage(*words)
    assert [line.split(None, 2)[1:] for line in done.stdout.splitlines()[1:]] == [
        ["[1]", "short"], ["[2]", "in between"], ["[0]", "a longer one"],
    ]  # fmt: skip
    result = sage.json(*words, "--top-n", "1")
    assert (result["backend"], result["hits"]) == ("toy-embedding", [{"index": 1, "score": 0.2}])
    assert (
        "[1]  abc" in sage("infer", "rerank", "q", "-", "-m", str(cross_encoder), stdin="abcd\nabc\n").stdout
    )


def test_what_rerank_refuses(sage: Sage, encoder: Path) -> None:
    assert "name one with --model" in sage.fails("infer", "rerank", "q", "d", code=2)
    assert "no document given" in sage.fails("infer", "rerank", "q", "-m", str(encoder), code=2)
    message = sage.fails("infer", "rerank", "q", "d", "-m", str(encoder), code=2)
    assert "is an embedding model, but a reranker is required here; `sage infer embed` takes it" in message


# --- model, config, doctor


def test_models_are_listed(sage: Sage) -> None:
    rows = {row["name"]: row for row in sage.json("infer", "model", "list")}
    assert rows["smollm2-135m"]["state"] == "not-added"
    done = sage("infer", "model", "list")
    assert "sage infer model add minilm" in done.stderr


def test_a_model_that_was_not_added_says_how(sage: Sage) -> None:
    assert "sage infer model add smollm2-135m" in sage.fails("infer", "generate", "hi", code=3)


def test_model_path_and_add_of_a_file(sage: Sage, gguf: Path) -> None:
    assert sage("infer", "model", "path", str(gguf)).stdout == f"{gguf}\n"
    assert sage.json("infer", "model", "path", str(gguf))["model_type"] == "llm"
    done = sage("infer", "model", "add", str(gguf), "-b", "toy")
    assert done.stdout == f"{gguf}: {gguf} (prepared for toy)\n"
    assert "folding for toy" in done.stderr
    (row,) = sage.json("infer", "model", "add", str(gguf), "-b", "toy")
    assert row["prepared_for"] == ["toy"]
    assert "not ready" in sage.fails("infer", "model", "add", str(gguf), "-b", "toy-npu", code=3)


def test_config_init_show_validate(sage: Sage, tmp_path: Path) -> None:
    assert sage("infer", "config", "init").stdout == "wrote sage_infer.yaml\n"
    assert "exists" in sage.fails("infer", "config", "init", code=2)
    assert sage("infer", "config", "init", "--force").returncode == 0
    assert "sage_infer.yaml is valid" in sage("infer", "config", "validate").stdout
    values = {row["key"]: row for row in sage.json("infer", "config", "show")["values"]}
    assert values["inference.backend"]["value"] == "toy"
    assert "SAGE_INFER_INFERENCE_BACKEND" in values["inference.backend"]["origin"]
    assert "inference.model" in sage("infer", "config", "show").stdout


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("inference:\n  bakend: x\n", ["bad.yaml:2", "backend"]),
        ("inference: [\n", ["bad.yaml:"]),
        ("infrence: {}\n", ["bad.yaml:1", "inference"]),
        ("- a\n", ["bad.yaml"]),
    ],
)
def test_a_wrong_configuration_names_file_line_and_nearest_key(
    sage: Sage, tmp_path: Path, text: str, messages: list[str]
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    for line in (
        sage.fails("infer", "config", "validate", "bad.yaml", code=2),
        sage.fails("--config", "bad.yaml", "infer", "config", "show", code=2),
        sage.fails("infer", "generate", "hi", code=2, SAGE_INFER_CONFIG="bad.yaml"),
    ):
        assert all(message in line for message in messages), line


def test_doctor_finds_what_is_wrong_and_how_to_mend_it(sage: Sage, tmp_path: Path) -> None:
    report = sage.json("infer", "doctor", SAGE_INFER_DISABLE="toy-lost")
    assert report["python"].startswith(".".join(map(str, sys.version_info[:2])))
    assert "toy-sage" in [d["name"] for d in report["distributions"]]
    fixes = {problem["where"]: problem["fix"] for problem in report["problems"]}
    assert fixes["backend toy-needy"] == "pip install 'no-such-distribution>=2' 'attrs>=999'"
    assert fixes["model minilm"] == "sage infer model add minilm"
    text = sage("infer", "doctor").stdout
    assert "fix: sage infer model add minilm" in text


def test_doctor_fails_where_something_is_broken(sage: Sage, tmp_path: Path) -> None:
    (tmp_path / "sage_infer.yaml").write_text("infrence: {}\n")
    done = sage("infer", "doctor")
    assert done.returncode == 1
    assert "error: configuration: " in done.stdout


def test_plugins_of_every_kind_are_listed_and_shown(sage: Sage) -> None:
    rows = {(row["kind"], row["name"]): row for row in sage.json("infer", "plugin", "list")}
    assert rows["backend", "toy"]["state"] == "ready"
    assert rows["command", "toy greet"]["distribution"] == "toy-sage"
    assert rows["backend", "toy-npu"]["state"] == "no-hardware"
    assert {row["kind"] for row in sage.json("infer", "plugin", "list", "--kind", "command")} == {"command"}
    assert "toy greet" in sage("infer", "plugin", "list").stdout
    shown = sage("infer", "plugin", "show", "toy greet").stdout
    assert "app             toy_engine:greet" in shown
    assert "from            toy-sage 1.0" in shown
    assert sage.json("infer", "plugin", "show", "toy")["details"]["options"] == {"delay": "ignored"}
    assert "--kind must be one of backend, " in sage.fails("infer", "plugin", "list", "--kind", "x", code=2)
    assert "no executor 'toy'" in sage.fails("infer", "plugin", "show", "toy", "--kind", "executor", code=3)


def test_paths_that_lead_nowhere_are_found(sage: Sage) -> None:
    reason = "factory toy_engine:NoSuchThing does not exist (module toy_engine has no NoSuchThing)"
    assert reason in sage("infer", "plugin", "list").stdout
    assert reason in sage("infer", "plugin", "show", "toy-lost").stdout
    report = sage("infer", "doctor")
    assert report.returncode == 1
    assert f"error: backend toy-lost: {reason}" in report.stdout


def test_output_into_a_closed_pipe_is_no_traceback(sage: Sage) -> None:
    import subprocess

    command = f"{sys.executable} -m sage_infer.cli.main infer schema dump | head -c 10"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=sage.environment, cwd=sage.folder
    )
    assert "Traceback" not in done.stderr


def test_an_interrupt_and_a_bug_have_their_own_exit_codes(sage: Sage) -> None:
    interrupted = sage("toy", "interrupted")
    assert interrupted.returncode == 130
    assert "Traceback" not in interrupted.stderr
    (sage.folder / "sitecustomize.py").write_text(OWN_BUG)
    line = sage.fails("infer", "model", "list", code=70, PYTHONPATH=str(sage.folder))
    assert "internal error: ZeroDivisionError" in line
    assert "--debug" in line


OWN_BUG = "import sage_infer.models\nsage_infer.models.list_models = lambda: 1 / 0\n"


def test_a_mistake_of_a_plugin_names_its_wheel(sage: Sage, gguf: Path) -> None:
    line = sage.fails("toy", "broken", code=1)
    assert "`sage toy broken` of toy-sage failed: ZeroDivisionError: division by zero" in line
    assert "Traceback" in sage("toy", "broken", "--debug").stderr
    line = sage.fails("infer", "generate", "crash", "-m", str(gguf), code=1)
    assert "toy-sage (toy_plugin): toy_engine.generate() failed: ZeroDivisionError: division by zero" in line
