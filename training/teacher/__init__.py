"""A teacher for distillation: a pretrained audio network and a linear head. For training only.

The weights are those of `aisfx` (Ma and Lerch, "Representation Learning for the Automatic Indexing of Sound
Effects Libraries", ISMIR 2022; CC BY 4.0). They are downloaded once; serving does not need them.
"""
