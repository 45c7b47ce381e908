"""Memory and time of a run's programs, without the machine it needs."""
