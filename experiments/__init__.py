"""The command line: stages, configs, metrics and the report."""
