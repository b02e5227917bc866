"""The commands ``sage infer kv …``, and what they read."""
