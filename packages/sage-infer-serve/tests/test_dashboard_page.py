"""The dashboard's files, and the page in a real browser against a real gateway."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
from browser import browser, console_errors
from dashboard_backend import GIB, DashboardBackend, Device, Plan, Share
from sage_infer.contracts import ModelStatus
from sage_infer.errors import EngineDead
from sage_infer_serve import GatewaySettings, running_gateway
from sage_infer_serve.http.auth import APIKey

# --- the files

PAGES = {
    entry.name: entry.read_text("utf-8")
    for entry in files("sage_infer_serve").joinpath("dashboard").iterdir()
}
SCRIPTS = "\n".join(text for name, text in PAGES.items() if name.endswith(".js"))


def words(language: str) -> set[str]:
    """The names of a language's sentences, with those in tables as a.b."""
    block = re.search(rf"^  {language}: \{{\n(.*?)^  \}},\n", PAGES["words.js"], re.MULTILINE | re.DOTALL)
    assert block
    found = set()
    for name, value in re.findall(r"^    (\w+): (.*?),\n(?=    \w|\Z)", block[1], re.MULTILINE | re.DOTALL):
        inner = re.findall(r"(\w+): \"", value) if value.startswith("{") else []
        found |= {f"{name}.{key}" for key in inner} or {name}
    return found


def test_the_page_is_small() -> None:
    assert sum(len(text.encode()) for text in PAGES.values()) < 100_000


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    """What the policy would refuse is not there, so that the page never depends on a lax one."""
    html = PAGES["index.html"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", html)
    for name, text in PAGES.items():
        addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert addresses == set(), name
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", SCRIPTS)


def test_every_referenced_file_exists() -> None:
    named = set(re.findall(r"/dashboard/([\w.]+)", PAGES["index.html"])) | set(
        re.findall(r"from \"\./([\w.]+)\"", SCRIPTS)
    )
    assert named == set(PAGES) - {"index.html"}


def test_both_languages_have_every_sentence() -> None:
    english = words("en")
    assert english == words("zh")
    used = set(re.findall(r"data-(?:text|placeholder)=\"(\w+)\"", PAGES["index.html"]))
    used |= set(re.findall(r"\bsay\(\"(\w+)\"", SCRIPTS))
    assert used <= {name.partition(".")[0] for name in english}
    for prefix in set(re.findall(r"\bsay\(`(\w+)\.", SCRIPTS)):
        assert any(name.startswith(f"{prefix}.") for name in english)


def test_every_field_has_a_label() -> None:
    html = PAGES["index.html"]
    fields = set(re.findall(r"<(?:input|select|textarea) id=\"([\w-]+)\"", html))
    assert fields == set(re.findall(r"<label for=\"([\w-]+)\"", html))
    assert len(fields) == 8


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(scheme: int) -> None:
    """WCAG AA: 4.5 for text, 3 for what curves and bars are drawn with."""
    blocks = re.findall(r":root \{(.*?)\}", PAGES["style.css"], re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme]))
    for background in ("page", "card", "soft"):
        for ink in ("ink", "quiet", "good", "wait", "bad", "first"):
            assert contrast(colours[ink], colours[background]) >= 4.5, (ink, background)
    assert contrast(colours["on-first"], colours["first"]) >= 4.5
    assert contrast(colours["bad"], colours["bad-soft"]) >= 4.5
    for ink in ("first", "second", "m0", "m1", "m2", "m3", "m4", "m5"):
        assert contrast(colours[ink], colours["card"]) >= 3, ink


# --- the page in a browser


def visit(
    backend: DashboardBackend,
    act: Callable[[Any, Any], None],
    *,
    keys: tuple[APIKey, ...] = (),
    **window: Any,
) -> None:
    """Run ``act(driver, gateway)`` in a thread while the gateway runs here."""

    async def main() -> None:
        async with running_gateway(backend, GatewaySettings(port=0, drain_timeout_s=0), keys=keys) as gateway:

            def drive() -> None:
                with browser(**window) as driver:
                    driver.get(gateway.url)
                    act(driver, gateway)

            await asyncio.to_thread(drive)

    asyncio.run(main())


def until(driver: Any, script: str, seconds: float = 300) -> Any:
    """The value of a JavaScript expression as soon as it is true; fails with the page's text where it never is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := driver.execute_script(f"return {script}"):
            return value
    pytest.fail(f"{script} is not true; the page says:\n{text_of(driver, 'body')}\n{console_errors(driver)}")


def text_of(driver: Any, selector: str) -> str:
    text: str = driver.execute_script(f"return document.querySelector({selector!r}).innerText")
    return text


def shows(text: str, selector: str = "body") -> str:
    return f"document.querySelector({selector!r})?.innerText.includes({text!r})"


def click(driver: Any, selector: str) -> None:
    driver.find_element("css selector", selector).click()


def type_into(driver: Any, selector: str, text: str) -> None:
    field = driver.find_element("css selector", selector)
    field.clear()
    field.send_keys(text)


@pytest.fixture
def backend() -> DashboardBackend:
    return DashboardBackend()


def test_a_chat_and_a_comparison(backend: DashboardBackend) -> None:
    def act(driver: Any, gateway: Any) -> None:
        until(driver, "!document.querySelector('#chat-send').disabled")
        type_into(driver, "#chat-system", "Be brief.")
        type_into(driver, "#chat-text", "<b>hello</b> from the browser\n")  # Enter sends
        until(driver, shows("4 tokens", "#chat-figures"))
        said = driver.execute_script("return [...document.querySelectorAll('.said')].map(e => e.textContent)")
        assert said == ["<b>hello</b> from the browser", "<b>hello</b> from the browser "]
        type_into(driver, "#chat-text", "again")
        click(driver, "#chat-send")
        until(driver, "document.querySelectorAll('.said').length === 4")
        until(driver, shows("1 tokens", "#chat-figures"))

        click(driver, "#tab-embed")
        type_into(driver, "#embed-texts", "aaa\nee\naa")
        click(driver, "#embed-send")
        until(driver, shows("4 dimensions", "#embed-figures"))
        cells = driver.execute_script(
            "return [...document.querySelectorAll('.heat')].map(e => e.textContent)"
        )
        assert cells == ["1.00", "0.00", "1.00", "0.00", "1.00", "0.00", "1.00", "0.00", "1.00"]
        type_into(driver, "#embed-texts", "alone")
        click(driver, "#embed-send")
        until(driver, shows("at least two texts", "#embed-result"))

        # And the requests arrive in the figures.
        until(driver, "document.querySelector('#chart-ttft .dot, #chart-ttft .curve')")
        until(driver, "document.querySelector('#chart-tokens .curve')")
        assert console_errors(driver) == []

    visit(backend, act)
    (_, first), (_, second) = [call for call in backend.calls if call[0] == "chat"]
    roles = [message["role"] for message in second["messages"]]
    assert [m["content"] for m in first["messages"]] == ["Be brief.", "<b>hello</b> from the browser"]
    assert roles == ["system", "user", "assistant", "user"]


def test_models_memory_and_queue(backend: DashboardBackend) -> None:
    now = time.time()
    backend.states = {
        "vectors": ModelStatus(
            model_id="vectors", state="failed", since=now - 120, reason="the weights are truncated"
        ),
        "scores": ModelStatus(
            model_id="scores", state="loading", since=now - 5, stage="reading weights", share=0.4
        ),
    }
    backend.plan = Plan(
        devices=(
            Device(name="cuda:0", total=24 * GIB, usable=20 * GIB),
            Device(name="cpu", total=8 * GIB, usable=8 * GIB),
        ),
        shares=(
            Share(model_id="echo", device="cuda:0", weights=8 * GIB, kv=4 * GIB),
            Share(model_id="vectors", device="cpu", weights=GIB),
        ),
    )
    backend.measured = {"echo": 11 * GIB, "vectors": None}

    def act(driver: Any, gateway: Any) -> None:
        until(driver, shows("reading weights 40%", "#models"))
        models = text_of(driver, "#models")
        assert "the weights are truncated" in models
        assert "2 min" in models
        memory = text_of(driver, "#memory")
        assert "20.0 GiB of 24.0 GiB usable" in memory
        assert "11.0 GiB" in memory
        assert "not measured" in memory
        widths = driver.execute_script(
            "return [...document.querySelectorAll('.device .bar')].map(b => b.firstChild.getBoundingClientRect().width"
            " / b.getBoundingClientRect().width)"
        )
        assert widths[:2] == [pytest.approx(12 / 24, abs=0.01), pytest.approx(11 / 24, abs=0.01)]
        assert "0 of 64" in text_of(driver, "#queue")
        # What has failed is not offered.
        click(driver, "#tab-embed")
        assert driver.execute_script("return document.querySelector('#embed-send').disabled")
        assert "no model ready" in driver.execute_script(
            "return document.querySelector('#embed-model').textContent"
        )

    visit(backend, act)


@pytest.mark.parametrize("width", [1280, 360])
def test_kv_stores(backend: DashboardBackend, width: int) -> None:
    """A panel that is there only where a model has a store; it fits on a telephone."""

    def act(driver: Any, gateway: Any) -> None:
        until(driver, shows("Queue"))
        assert driver.execute_script("return document.querySelector('#kv-section').hidden")
        backend.kv = {
            "fetched": 12, "saved": 30, "dropped": 2, "page_bytes": 2**20, "blocks": 40, "capacity_blocks": 80,
            "hits": 3, "misses": 1, "tier_dram": 20, "tier_remote": 40, "paused": 0,
        }  # fmt: skip
        until(driver, shows("12 MiB reused (12 blocks)", "#kv-stores"))
        panel = text_of(driver, "#kv-stores")
        for text in ("echo", "Memory", "20 of 80", "Server", "40 of 80", "3 of 4", "saved: 30", "dropped: 2"):
            assert text in panel
        assert "left alone" not in panel
        widths = driver.execute_script(
            "return [...document.querySelectorAll('#kv-stores .bar')].map(b =>"
            " b.firstChild.getBoundingClientRect().width / b.getBoundingClientRect().width)"
        )
        assert widths == [pytest.approx(share, abs=0.02) for share in (0.25, 0.5, 0.75)]
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        backend.kv["paused"] = 1
        until(driver, shows("left alone after failures", "#kv-stores"))
        assert console_errors(driver) == []

    visit(backend, act, width=width)


@pytest.mark.parametrize("width", [1280, 360])
def test_instances_of_a_control_plane(backend: DashboardBackend, width: int) -> None:
    """A panel that is there only where there are instances; it fits on a telephone."""

    def act(driver: Any, gateway: Any) -> None:
        until(driver, shows("Queue"))
        assert driver.execute_script("return document.querySelector('#cluster-section').hidden")
        backend.scaling = [
            {
                "model": "chat",
                "min": 0,
                "max": 4,
                "desired": 2,
                "actual": 1,
                "reason": "1 → 2: load 0.9 <b>high</b>",
            }
        ]
        backend.instances = [
            {
                "instance": "chat/0", "state": "ready", "reason": "", "role": "decode", "running": 4,
                "queued_tokens": 1200, "kv_used": 0.25, "cache_hits": 0.5, "migrated_in": 2, "migrated_out": 1,
                "restarts": 0,
            },
            {"instance": "chat/p0", "state": "failed", "reason": "out of memory <b>here</b>", "restarts": 5},
        ]  # fmt: skip
        until(driver, shows("chat/0", "#cluster"))
        scaling = text_of(driver, "#cluster-scaling")
        assert scaling == "chat: 1 ready, 2 wanted, 0 to 4 allowed · 1 → 2: load 0.9 <b>high</b>"
        panel = text_of(driver, "#cluster")
        for text in (
            "decode",
            "ready",
            "25%",
            "50%",
            "1,200",
            "2 / 1",
            "chat/p0",
            "failed",
            "memory <b>here</b>",
        ):
            assert text in panel
        assert text_of(driver, "#cluster-requests") == "open: 3 · moved after their first token: 2"
        widths = driver.execute_script(
            "return [...document.querySelectorAll('#cluster .bar')].map(b =>"
            " b.firstChild.getBoundingClientRect().width / b.getBoundingClientRect().width)"
        )
        assert widths == [pytest.approx(share, abs=0.05) for share in (0.25, 0.5)]
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        click(driver, "#language")
        until(driver, shows("已输出后迁移：2", "#cluster-requests"))
        assert "undefined" not in text_of(driver, "#cluster")
        assert console_errors(driver) == []

    visit(backend, act, width=width)


def test_an_answer_can_be_stopped_and_an_error_is_shown(backend: DashboardBackend) -> None:
    def act(driver: Any, gateway: Any) -> None:
        until(driver, "!document.querySelector('#chat-send').disabled")
        backend.gate = asyncio.Event()  # nobody opens it
        type_into(driver, "#chat-text", "wait for ever\n")
        until(driver, "!document.querySelector('#chat-stop').hidden")
        click(driver, "#chat-stop")
        until(driver, shows("stopped", "#chat-log"))
        backend.gate, backend.fail = None, EngineDead("the engine is gone; start it again")
        type_into(driver, "#chat-text", "one two\n")
        until(driver, shows("the engine is gone", ".problem"))
        assert "one two" in text_of(driver, ".assistant")
        click(driver, "#chat-clear")
        assert text_of(driver, "#chat-log") == ""

    visit(backend, act)
    assert backend.cancelled == 1


def test_a_key_is_asked_for_and_kept_in_the_tab_only(backend: DashboardBackend) -> None:
    import hashlib

    key = APIKey("team", hashlib.sha256(b"sk-right").digest())

    def act(driver: Any, gateway: Any) -> None:
        until(driver, shows("API key missing", "#banner"))
        assert driver.execute_script("return document.activeElement.id") == "key"
        type_into(driver, "#key", "sk-wrong\n")
        until(driver, shows("unknown API key", "#banner"))
        type_into(driver, "#key", "sk-right\n")
        until(driver, shows("echo", "#models"))
        assert driver.execute_script("return document.querySelector('#banner').hidden")
        assert driver.execute_script("return JSON.stringify(localStorage)") == "{}"
        assert driver.execute_script("return sessionStorage.length") == 1
        type_into(driver, "#chat-text", "hi\n")
        until(driver, shows("1 tokens", "#chat-figures"))
        click(driver, "#key-button")
        click(driver, "#key-forget")
        until(driver, shows("API key missing", "#banner"))
        assert driver.execute_script("return sessionStorage.length") == 0

    visit(backend, act, keys=(key,))


def test_an_unreachable_server_is_reported(backend: DashboardBackend) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        async with running_gateway(backend, GatewaySettings(port=0, drain_timeout_s=0)) as gateway:

            def drive() -> None:
                with browser() as driver:
                    driver.get(gateway.url)
                    until(driver, shows("echo", "#models"))
                    loop.call_soon_threadsafe(gateway.drain)
                    until(driver, shows("unreachable", "#banner"))
                    assert "echo" in text_of(driver, "#models")  # the last known figures stay
                    assert driver.execute_script("return document.querySelector('main').className") == "stale"
                    loop.call_soon_threadsafe(gone.set)

            await asyncio.to_thread(drive)
            await asyncio.wait_for(gone.wait(), 300)

    asyncio.run(main())


def test_keyboard_and_chinese_on_a_narrow_dark_screen(backend: DashboardBackend) -> None:
    def act(driver: Any, gateway: Any) -> None:
        until(driver, shows("模型", "#models-title"))
        assert driver.execute_script("return document.documentElement.lang") == "zh-CN"
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        assert (
            driver.execute_script("return getComputedStyle(document.body).backgroundColor")
            == "rgb(14, 19, 24)"
        )
        driver.find_element("css selector", "#tab-chat").send_keys("\ue014")  # arrow right
        assert driver.execute_script("return document.activeElement.id") == "tab-embed"
        assert not driver.execute_script("return document.querySelector('#embed').hidden")
        chart = driver.find_element("css selector", "#chart-itl svg")
        chart.send_keys("\ue012")  # arrow left
        until(driver, "!document.querySelector('#chart-itl .tip').hidden")
        click(driver, "#language")
        until(driver, shows("Models", "#models-title"))
        driver.refresh()
        until(driver, shows("Models", "#models-title"))

    visit(backend, act, width=400, height=800, language="zh-CN", dark=True)
