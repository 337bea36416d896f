"""How good is it? Distances between sets of pictures, and the networks that describe pictures."""
