"""Sentence encoders, read from Hugging Face folders."""
