"""A real huggingface_hub against a hub on this machine: downloaded once, found offline afterwards."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sage_infer.errors import ModelFileError, ModelNotFound, SageInferError
from sage_infer.models import resolve_model

pytest.importorskip("huggingface_hub")

SHA = "0123456789abcdef0123456789abcdef01234567"
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()
FILES = {
    "config.json": CONFIG,
    "tokenizer.json": b"{}",
    "model.safetensors": b"w" * 5000,
    "pytorch_model.bin": b"the same weights again",
    "onnx/model.onnx": b"and again",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as ``snapshot_download`` asks for."""

    repositories: dict[str, dict[str, bytes]]
    served: list[str]
    gone = False

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        if "owner/gated" in path:
            return self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        if "owner/busy" in path:
            return self.reply(418, b"{}", {}, body)
        for name, files in self.repositories.items():
            if path.startswith(f"api/models/{name}/tree/"):
                tree = [{"type": "file", "path": p, "size": len(c), "oid": oid(p)} for p, c in files.items()]
                return self.json(tree, body)
            if path in (f"api/models/{name}", f"api/models/{name}/revision/main"):
                siblings = [{"rfilename": file} for file in files]
                return self.json({"id": name, "sha": SHA, "siblings": siblings}, body)
            _, found, file = path.partition(f"{name}/resolve/{SHA}/")
            if found and file in files:
                if body:
                    self.served.append(file)
                headers = {"ETag": f'"{oid(file)}"', "X-Repo-Commit": SHA, "Content-Type": "text/plain"}
                return self.reply(200, files[file], headers, body)
        return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def json(self, data: object, body: bool) -> None:
        self.reply(200, json.dumps(data).encode(), {"Content-Type": "application/json"}, body)

    def reply(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def oid(path: str) -> str:
    return path.encode().hex().ljust(40, "0")[:40]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("Handler", (Hub,), {"repositories": {"owner/name": dict(FILES)}, "served": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "SAGE_INFER_CONFIG", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def refused(name: str, match: str, kind: type[SageInferError] = ModelNotFound) -> None:
    with pytest.raises(kind, match=match) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)


def test_downloaded_once_then_found_offline(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = resolve_model("owner/name", model_type="llm")
    assert model.model_id == "owner/name"
    path = Path(model.model_path)
    assert path.is_relative_to(tmp_path / "hub")
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert sorted(hub.served) == ["config.json", "model.safetensors", "tokenizer.json"], "no weights twice"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve_model("owner/name") == model
    assert resolve_model("owner/name", offline=True) == model


def test_other_weights_where_there_are_no_safetensors(hub: type[Hub]) -> None:
    del hub.repositories["owner/name"]["model.safetensors"]
    resolve_model("owner/name")
    assert "pytorch_model.bin" in hub.served


def test_an_interrupted_download_goes_on(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(resolve_model("owner/name").model_path)
    (path / "tokenizer.json").unlink()
    (tmp_path / "hub" / "models--owner--name" / "blobs" / "x.incomplete").write_bytes(b"")
    assert resolve_model("owner/name", offline=True).model_path == str(path), "better than nothing"
    resolve_model("owner/name")
    assert (path / "tokenizer.json").read_bytes() == b"{}"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve_model("owner/name").model_path == str(path)


def test_what_a_hub_can_answer(hub: type[Hub]) -> None:
    refused(
        "owner/nothing",
        r"http://127\.0\.0\.1:\d+ has no public model of that name: check it, or set HF_TOKEN",
    )
    refused("owner/gated", "requires its terms to be accepted")
    refused("owner/busy", r"answered 418: try again later, set HF_ENDPOINT to a mirror, or copy its folder")


def test_gguf_repositories_are_not_fetched_whole(hub: type[Hub]) -> None:
    hub.repositories["owner/quants"] = {"a-Q4.gguf": b"GGUF", "a-Q8.gguf": b"GGUF", "README.md": b""}
    refused("owner/quants", r"offers 2 GGUF file\(s\): .*`hf download owner/quants a-Q4\.gguf`")
    assert hub.served == []


def test_a_repository_without_a_model(hub: type[Hub]) -> None:
    hub.repositories["owner/data"] = {"README.md": b"hello"}
    refused("owner/data", r"is not a model", ModelFileError)


def test_no_hub(hub: type[Hub], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused(
        "owner/name", r"http://127\.0\.0\.1:9 cannot be reached \(.+\): set HF_ENDPOINT to a mirror, or copy"
    )
    assert "Retrying" not in capfd.readouterr().err
