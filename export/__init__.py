"""Checkpoint -> TorchScript, ONNX and the TorchServe archive. Build time only: no server imports it."""
