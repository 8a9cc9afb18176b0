"""Start, supervise and manage TorchServe."""
