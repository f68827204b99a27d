"""What if the pumps did otherwise: edits as people write them, and paired futures with and without them."""
