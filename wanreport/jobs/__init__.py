"""What to run: the job, SGLang's flags and model registry, the schedule."""
