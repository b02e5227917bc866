"""A model's files, and what vLLM makes of them: conversion, quantization, KV cache, memory."""
