"""REST and live streams in front of TorchServe, which it asks through `audiocnn.client.async_client`."""
