"""Index of KV blocks: which instances hold which prefixes."""

from __future__ import annotations

from sage_llm.index.keys import prompt_keys, root_key, text_keys
from sage_llm.index.kv_index import KVIndex

__all__ = ["KVIndex", "prompt_keys", "root_key", "text_keys"]
