"""Traces as a data set for others: which are chosen, the files they are written to, the card that tells of them."""
