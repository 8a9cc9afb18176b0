"""AudioCNN: sounds in; class labels, calibrated confidences and timestamps out."""

__version__ = "0.2.0"
