"""Readers of GGUF files: tensors, a decoder's weights, and the tokenizer."""
