"""API for vendors' wheels: the platform table, and the backend classes to subclass.

Only this module is public; other modules may change between releases. Importing it does not import vLLM. The plug-in
module of a vendor's wheel, such as ``sage-infer-ascend``, lists its backends with ``sage_infer.sdk.platform_backends``,
which works without this wheel.
"""

from sage_infer_vllm.backend import VLLMBackend
from sage_infer_vllm.embedding_backend import VLLMEmbeddingBackend
from sage_infer_vllm.installed import missing
from sage_infer_vllm.platform import Platform, QuantizationMethod
from sage_infer_vllm.settings import VLLMSettings, engine_arguments, visible_devices

__all__ = [
    "Platform", "QuantizationMethod", "VLLMBackend", "VLLMEmbeddingBackend", "VLLMSettings", "engine_arguments",
    "missing", "visible_devices",
]  # fmt: skip
