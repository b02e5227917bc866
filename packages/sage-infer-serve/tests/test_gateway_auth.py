"""API keys: their file, their limits, and the commands that change it."""

from __future__ import annotations

import asyncio
import hashlib
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from gateway_backend import EchoBackend
from gateway_served import Served, chat_body, read_all, request_bytes
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.errors import ConfigError, EngineDead
from sage_infer_serve.http.auth import APIKey, KeyLimits, Keys, add_key, read_keys, remove_key
from sage_infer_serve.http.errors import HTTPError
from sage_infer_serve.server import check_settings
from sage_infer_serve.settings import GatewaySettings


def test_a_key_is_kept_as_a_digest(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    limits = KeyLimits(requests_per_minute=60, concurrency=4)
    key = add_key(file, "ann", limits)
    other = add_key(file, "bob", KeyLimits())
    assert key != other
    text = file.read_text()
    assert key not in text
    assert hashlib.sha256(key.encode()).hexdigest() in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = read_keys(file)
    assert [(k.name, k.limits) for k in found] == [("ann", limits), ("bob", KeyLimits())]
    assert Keys(found).check(f"Bearer {key}".encode()).name == "ann"
    remove_key(file, "ann")
    with pytest.raises(HTTPError):
        Keys(read_keys(file)).check(f"Bearer {key}".encode())
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys"], "something was left beside it"


def test_names_are_unique_and_plain(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    add_key(file, "ann", KeyLimits())
    with pytest.raises(ConfigError, match="already has a key 'ann'"):
        add_key(file, "ann", KeyLimits())
    with pytest.raises(ConfigError, match="letters, digits"):
        add_key(file, "ann\nbob", KeyLimits())
    with pytest.raises(ConfigError, match="has no key 'eve'; it has: ann"):
        remove_key(file, "eve")
    with pytest.raises(ConfigError, match="cannot write"):
        add_key(tmp_path / "no" / "folder", "ann", KeyLimits())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ann", "expected NAME sha256:HEX"),
        ("ann sha256:12", "64 hex digits"),
        ("ann sk-sage-plain", "expected NAME sha256:HEX"),
        (f"ann sha256:{'0' * 64} speed=3", "a limit must be one of requests_per_minute=N"),
        (f"ann sha256:{'0' * 64} concurrency=0", "got 'concurrency=0'"),
        (f"-x sha256:{'0' * 64}", "a key's name"),
        (f"ann sha256:{'0' * 64}\nann sha256:{'1' * 64}", "is repeated"),
    ],
)
def test_mistakes_in_the_file_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# keys\n\n{line}\n")
    with pytest.raises(ConfigError, match=message) as error:
        read_keys(file)
    assert f"{file}:{3 + line.count(chr(10))}: " in str(error.value)


@given(st.text())
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any-keys"
    file.write_text(text, "utf-8", newline="")
    refusal = str(file)
    try:
        read_keys(file)
    except ConfigError as error:
        refusal = str(error)
    assert str(file) in refusal


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def limited_key(**limits: int) -> tuple[APIKey, Clock]:
    clock = Clock()
    return APIKey("ann", b"", KeyLimits(**limits), clock), clock


def test_requests_a_minute() -> None:
    key, clock = limited_key(requests_per_minute=3)
    for _ in range(3):
        key.admit()
        key.release()
    with pytest.raises(
        HTTPError, match=r"key 'ann' has reached its limit of 3 requests a minute; try again in 20.0 s"
    ) as error:
        key.admit()
    assert error.value.status == 429
    assert dict(error.value.headers)[b"retry-after"] == b"20"
    clock.now += 20.001
    key.admit()
    with pytest.raises(HTTPError):
        key.admit()


def test_tokens_a_minute() -> None:
    """What a request took is known at its end; a large one is paid for by those that come after."""
    key, clock = limited_key(tokens_per_minute=600)
    key.admit()
    key.charge(1200)
    key.release()
    with pytest.raises(HTTPError, match="600 tokens a minute"):
        key.admit()
    clock.now += 61
    key.admit()


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("how", ["hangs up", "engine fails"])
def test_tokens_are_charged_as_they_are_generated(
    backend: EchoBackend, serve: Callable[..., Served], is_streamed: bool, how: str
) -> None:
    """Who does not wait for the end, or does not get one, has paid for what there was."""
    digest = hashlib.sha256(b"k").digest()
    key = APIKey("ann", digest, KeyLimits(tokens_per_minute=1000), Clock())
    served = serve(backend, keys=[key])
    body = chat_body(" ".join(["word"] * 3000), stream=is_streamed)
    request = request_bytes("/v1/chat/completions", body, "Authorization: Bearer k", "Connection: close")
    with served.connect() as connection:
        if how == "engine fails":
            backend.fail = EngineDead("killed")
            connection.sendall(request)
            read_all(connection)
        else:
            connection.sendall(request)
            served.until(lambda: key._tokens is not None and key._tokens._left < 0, "nothing was charged")
    served.until(lambda: not served.gateway.service.open, "the request is still open")
    refused = served.post("/v1/chat/completions", chat_body(), authorization="Bearer k")
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")


def test_concurrent_requests(backend: EchoBackend, serve: Callable[..., Served]) -> None:
    digest = hashlib.sha256(b"k").digest()
    served = serve(backend, keys=[APIKey("ann", digest, KeyLimits(concurrency=1))])
    backend.gate = served.call(asyncio.Event)
    with served.connect() as connection:
        connection.sendall(request_bytes("/v1/chat/completions", chat_body(), "Authorization: Bearer k"))
        served.until(lambda: backend.open, "the request did not arrive")
        refused = served.post("/v1/chat/completions", chat_body(), authorization="Bearer k")
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    served.until(lambda: not served.gateway.service.open, "the request is still open")
    served.call(backend.gate.set)
    assert served.post("/v1/chat/completions", chat_body(), authorization="Bearer k").status == 200


def test_a_host_that_others_reach_needs_keys(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "example.org"):
        with pytest.raises(ConfigError, match="use --insecure"):
            check_settings(GatewaySettings(host=host))
        assert check_settings(GatewaySettings(host=host, insecure=True)) == []
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert check_settings(GatewaySettings(host=host)) == []
    file = tmp_path / "keys"
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="has no API keys"):
        check_settings(GatewaySettings(keys_file=str(file)))
    add_key(file, "ann", KeyLimits())
    assert [key.name for key in check_settings(GatewaySettings(host="0.0.0.0", keys_file=str(file)))] == [
        "ann"
    ]
    with pytest.raises(ConfigError, match="cannot read the API keys"):
        check_settings(GatewaySettings(keys_file=str(tmp_path / "none")))
