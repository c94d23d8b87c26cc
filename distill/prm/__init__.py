"""Process reward models: the probability that each step of a response is right, and where it is used.

`distill.prm.scorer` says what a scorer is; labels, training, files and measures are modules of their own here. What
a step is says `distill.steps`.
"""
