"""HTTP clients of TorchServe and the WebSocket client of the gateway; without torch and numpy."""
