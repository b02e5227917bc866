"""A sage-infer backend around an n-gram model of bytes."""
