"""Prefill and decode as two calls, and export and import of KV.

``decode`` submits the prompt again with its KV loaded, all but the last token, and the first output token fixed: vLLM
computes one token and samples the first output again. So penalties, grammar, stops, log probabilities and the seed's
draws are vLLM's own, and equal those of ``generate``.
"""

from sage_infer_vllm.disaggregation.decode import decode
from sage_infer_vllm.disaggregation.instance import Instance
from sage_infer_vllm.disaggregation.prefill import prefill
from sage_infer_vllm.disaggregation.transfer import check_state, export_kv, import_kv

__all__ = ["Instance", "check_state", "decode", "export_kv", "import_kv", "prefill"]
