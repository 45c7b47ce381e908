"""Memory and time of a run's programs, told without the machine it needs."""
