"""The network, its front end, checkpoints, and engines that run exported files."""
