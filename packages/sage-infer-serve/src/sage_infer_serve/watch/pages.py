"""The dashboard's files, read once from the wheel. Each has its own route, so no other file can be requested."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

from attrs import frozen

from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.service import Service

__all__ = ["Page", "read_pages", "send_page"]

_KINDS = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".png": b"image/png",
    ".ico": b"image/x-icon",
}
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)


@frozen
class Page:
    """A file with its media type and its entity tag."""

    content: bytes
    kind: bytes
    etag: bytes


@cache
def read_pages() -> dict[str, Page]:
    """The dashboard's files by path."""
    pages: dict[str, Page] = {}
    for entry in files("sage_infer_serve").joinpath("dashboard").iterdir():
        kind = _KINDS.get("." + entry.name.rpartition(".")[2])
        if kind is None or not entry.is_file():
            continue
        content = entry.read_bytes()
        etag = b'"%b"' % hashlib.sha256(content).hexdigest()[:16].encode()
        pages["/" if entry.name == "index.html" else f"/dashboard/{entry.name}"] = Page(content, kind, etag)
    return pages


async def send_page(service: Service, exchange: Exchange) -> None:
    page = read_pages()[exchange.path]
    headers = [*_HEADERS, (b"etag", page.etag)]
    if exchange.headers.get(b"if-none-match") == page.etag:
        await exchange.respond(b"", status=304, kind=page.kind, headers=headers)
    else:
        await exchange.respond(page.content, kind=page.kind, headers=headers)
