"""AudioCNN: audio bytes in, what it is and how sure out."""
