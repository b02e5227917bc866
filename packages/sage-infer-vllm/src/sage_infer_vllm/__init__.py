"""vLLM backends of sage-infer for generation, embedding and reranking. The only package that imports vLLM."""
