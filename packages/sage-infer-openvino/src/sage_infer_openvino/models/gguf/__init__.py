"""What GGUF files hold: tensors, a decoder's weights, a tokenizer."""
