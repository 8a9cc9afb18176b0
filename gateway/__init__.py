"""REST and live streams in front of TorchServe, which it asks through `audiocnn.async_client`."""
