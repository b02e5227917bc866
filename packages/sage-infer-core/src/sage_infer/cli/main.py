"""Entry point of ``sage``: parse, run, and turn every error into one line and an exit code.

Exit codes: 0 success; 1 failure; 2 invalid input or configuration; 3 backend or model not available; 4 not
supported; 5 no capacity; 70 a bug in sage-infer; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer
from typer.main import get_command

from sage_infer.cli.lazy import LazyGroup
from sage_infer.errors import SageInferError

__all__ = ["app", "main"]

app = typer.Typer(
    cls=LazyGroup,
    name="sage",
    help="Run LLMs on any engine and any accelerator behind one contract.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_BUG = 70
_INTERRUPTED = 130


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"sage-infer-core {version('sage-infer-core')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    config: Annotated[
        str | None, typer.Option(help="Configuration file.", envvar="SAGE_INFER_CONFIG")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (also after the command).")] = False,
) -> None:
    if config is not None:
        os.environ["SAGE_INFER_CONFIG"] = config


def main() -> NoReturn:
    """Run ``sage`` with the arguments of the process."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments or os.environ.get("SAGE_INFER_DEBUG", "") not in ("", "0")
    as_json = "--json" in arguments
    # `--debug` is accepted anywhere, as users append it to a command line that has just failed.
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        get_command(app).main(arguments, prog_name="sage")
    except SageInferError as error:
        if debug:
            traceback.print_exc()
        _fail(error.code, error.message, error.exit_code, as_json)
    except KeyboardInterrupt:
        _fail("interrupted", "interrupted", _INTERRUPTED, as_json)
    except BrokenPipeError:
        # The reader of our output has closed it; avoid a second error when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            traceback.print_exc()
        failed = _plugin_failure(error)
        if failed is not None:
            _fail(failed.code, failed.message, failed.exit_code, as_json)
        what = f"internal error: {type(error).__name__}: {error}; run again with --debug and report the traceback"
        _fail("internal_error", what, _BUG, as_json)
    sys.exit(0)


def _plugin_failure(error: Exception) -> SageInferError | None:
    """The error attributed to the plug-in whose code raised it; None if it is our own."""
    try:
        from sage_infer.discovery.blame import plugin_failure

        return plugin_failure(error)
    except Exception:  # the original error matters more
        return None


def _fail(code: str, message: str, exit_code: int, as_json: bool) -> NoReturn:
    line = " ".join(message.split())
    if as_json:
        import json

        print(json.dumps({"error": {"code": code, "message": line}}, ensure_ascii=False), file=sys.stderr)
    else:
        colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        print(f"\x1b[31merror:\x1b[0m {line}" if colour else f"error: {line}", file=sys.stderr)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
