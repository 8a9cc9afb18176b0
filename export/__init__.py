"""Checkpoint to TorchScript, ONNX and the TorchServe archive, at build time: no server imports it."""
