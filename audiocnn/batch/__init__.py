"""Folders of sound files -> tables, on Ray Data: `audiocnn batch`."""
