"""Clients of the gateway and of TorchServe; they need neither torch nor numpy."""
