"""What runs the project elsewhere: images, compose, Kubernetes."""
