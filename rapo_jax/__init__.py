"""Retrieval-Augmented Policy Optimization (RAPO) for LLM agents, in JAX."""
