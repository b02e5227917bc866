"""vLLM behind the contract of sage-infer: generation, embedding, reranking. The only package that imports vLLM."""
