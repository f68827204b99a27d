"""A finished batch looked back upon: what made it deviate, and what would have been had its inputs been others."""
