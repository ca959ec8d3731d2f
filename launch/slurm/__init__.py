"""A run as a SLURM job: its script, and the commands that submit, find, follow and end it."""
