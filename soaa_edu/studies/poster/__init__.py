"""The poster's experiments: when second-order optimization pays, in batch, data and damping."""
