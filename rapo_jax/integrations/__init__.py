"""The objective inside other JAX trainers, one module each.

A module imports its trainer, which rapo_jax does not install, and of rapo_jax
the objectives alone.
"""
