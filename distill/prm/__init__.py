"""Process reward models, which give the probability that each step of a response is right.

`distill.prm.scorer` defines the interface of a scorer and `distill.steps` what a step is. Labels, training, files and
metrics each have a module here.
"""
