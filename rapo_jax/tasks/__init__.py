"""Tasks: questions, evaluation sets, tools, prompt and reward."""
