"""The connector that holds, loads and reads KV pages inside vLLM's processes. It and ``compat`` import vLLM."""
