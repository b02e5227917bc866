"""``sage infer model …``"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sage_infer.cli.options import Backend
from sage_infer.cli.output import AsJson, note, print_json, print_table, progress_bar

__all__ = ["add", "list_", "path"]


def list_(as_json: AsJson = False) -> None:
    """List named models with their state."""
    from sage_infer.models import list_models

    rows = list_models()
    if as_json:
        print_json([row.as_dict() for row in rows])
        return
    print_table(
        ("NAME", "TYPE", "STATE", "SIZE", "LICENCE", "WHERE"),
        [
            (row.name, row.model_type or "-", row.state, _size(row.size_bytes), row.license or "-",
             str(row.path or row.source))
            for row in rows
        ],
    )  # fmt: skip
    for row in rows:
        if row.fix:
            note(f"{row.name}: {row.fix}")


def add(
    names: Annotated[list[str], typer.Argument(help="Names from `sage infer model list`, or hub ids.")],
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """Fetch models and prepare them for the engines. Repeating it changes nothing."""
    with progress_bar() as progress:
        added = [(name, *_add(name, backend, progress)) for name in names]
    if as_json:
        print_json([{"name": name, "path": path, "prepared_for": engines} for name, path, engines in added])
        return
    for name, path, engines in added:
        print(f"{name}: {path}" + (f" (prepared for {', '.join(engines)})" if engines else ""))


def path(
    name: Annotated[str, typer.Argument(help="A name, hub id or path.")], as_json: AsJson = False
) -> None:
    """Print the location of a model's files."""
    from sage_infer.models import resolve_model

    model = resolve_model(name)
    if as_json:
        from sage_infer.schemas.codec import to_dict

        print_json(to_dict(model))
    else:
        print(model.model_path)


def _add(name: str, backend: str | None, progress: Callable[[str, float], None]) -> tuple[str, list[str]]:
    """The model's path, and the backends that it is prepared for."""
    from sage_infer.backends import find_backend, list_backends
    from sage_infer.discovery import model_specs
    from sage_infer.errors import BackendUnavailable
    from sage_infer.factories import call_path
    from sage_infer.models import add_model, resolve_model

    specs = model_specs()
    title = Path(name).name  # a full path would leave no room for the bar
    if name in specs:
        add_model(specs[name], progress=lambda stage, share: progress(f"{title}: {stage}", share))
    model = resolve_model(name)
    chosen = list_backends() if backend is None else [find_backend(backend)]
    if backend is not None and chosen[0].state != "ready":
        raise BackendUnavailable(f"backend {backend!r} is not ready ({chosen[0].state}): {chosen[0].reason}")
    prepared = []
    for info in chosen:
        spec = info.spec
        if info.state == "ready" and spec is not None and spec.prepare and model.model_type in spec.serves:
            call_path(
                spec.prepare,
                what=info.title,
                model=model,
                progress=lambda stage, share, n=info.name: progress(f"{title}: {stage} for {n}", share),
            )
            prepared.append(info.name)
    return model.model_path, prepared


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 1e6:.0f} MB"
