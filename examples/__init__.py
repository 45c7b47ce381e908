"""Whole programs that fit on a screen."""
