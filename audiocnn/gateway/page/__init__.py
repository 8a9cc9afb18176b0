"""The page at `/`: static files that use the public API, and the module that serves them."""
