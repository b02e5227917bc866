"""A model on vLLM: conversion, quantization, KV cache, memory."""
