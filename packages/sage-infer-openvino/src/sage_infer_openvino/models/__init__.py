"""From a model's files to a decoder graph and a tokenizer."""
