"""Training and evaluation: `python -m training.train`, `python -m training.evaluate`."""
