"""The OpenAI-compatible gateway of sage-infer."""
