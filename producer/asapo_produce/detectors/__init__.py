"""Sources of frames: a simulated detector, and recorded data sent again."""
