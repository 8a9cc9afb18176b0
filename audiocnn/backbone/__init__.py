"""A pretrained audio network as a feature extractor: `aisfx`, downloaded once and kept as ONNX.

The weights are those of Ma and Lerch, "Representation Learning for the Automatic Indexing of Sound Effects
Libraries", ISMIR 2022 (CC BY 4.0).
"""
