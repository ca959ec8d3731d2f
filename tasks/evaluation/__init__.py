"""What `python -m tasks evaluate` measures, one file for each kind of evaluation."""
