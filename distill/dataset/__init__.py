"""Traces as a data set to publish: choosing them, writing the files, and the card that describes them."""
