"""What starts, watches and manages TorchServe."""
