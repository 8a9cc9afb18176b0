"""A teacher for the served network: a pretrained audio network and a linear head. Training only.

The weights are those of `aisfx` (Ma and Lerch, "Representation Learning for the Automatic Indexing of Sound
Effects Libraries", ISMIR 2022; CC BY 4.0). They are downloaded once; serving never needs them.
"""
