"""The commands ``sage llm …``."""
