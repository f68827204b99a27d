"""State estimation: the belief, the filters that move it, the model they need, and what judges both."""
