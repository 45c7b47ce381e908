"""The stages of an experiment: agents, buffer, train, evaluate, report."""
