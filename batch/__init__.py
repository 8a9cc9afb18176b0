"""Folders of sound files -> tables, on Ray Data: `python -m batch.score`."""
