"""Sentence encoders and rerankers: graph, batches, and the thread that runs them."""
