"""The contract kit on this backend: everything that it claims is tested, everything else must be refused."""

from __future__ import annotations

from sage_infer_testing import InferenceBackendContract, PluginContract


class TestPlugin(PluginContract):
    module = "ngram_sage.plugin"


class TestNgram(InferenceBackendContract):
    backend_name = "ngram"
    model = "ngram-lighthouse"
    max_queue = 64
    prompts = ("The keeper had", "Once upon a time,", "The sea was", "One evening", "The captain", "Out on")
    prompt_token_ids = tuple(b"The keeper had")
