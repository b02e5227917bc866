"""vLLM behind the sage-infer contract: generation, embedding, reranking. The only package that imports vLLM."""
