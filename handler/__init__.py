"""The handler that goes into the archive that TorchServe loads."""
