"""Commands of `experiments.buffer`: import, endpoint and page."""
