"""The TorchServe side: the handler that goes into the archive, and the commands that run the server."""
