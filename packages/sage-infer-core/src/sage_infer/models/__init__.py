"""Models by name: resolve a user's input to local files."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = [
    "ModelFiles", "ModelNotAdded", "ModelRow", "add_model", "check_model_files", "inspect_model", "is_model_name",
    "list_models", "model_path", "model_state", "models_dir", "open_model_file", "read_model_text", "resolve_model",
]  # fmt: skip

if TYPE_CHECKING:
    from sage_infer.models.contents import ModelFiles, inspect_model
    from sage_infer.models.files import check_model_files, open_model_file, read_model_text
    from sage_infer.models.listing import ModelRow, list_models
    from sage_infer.models.resolve import ModelNotAdded, is_model_name, resolve_model
    from sage_infer.models.store import model_path, model_state, models_dir
    from sage_infer.models.wheels import add_model

_HOMES = {
    "ModelFiles": "contents", "inspect_model": "contents", "ModelRow": "listing", "list_models": "listing",
    "ModelNotAdded": "resolve", "is_model_name": "resolve", "resolve_model": "resolve",
    "model_path": "store", "model_state": "store", "models_dir": "store", "add_model": "wheels",
    "check_model_files": "files", "open_model_file": "files", "read_model_text": "files",
}  # fmt: skip
__getattr__ = lazy_exports(__name__, _HOMES)
