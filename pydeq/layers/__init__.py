"""Layers as data: what encoder, cell and decoder of a model are made of. No arrays, no engine."""

from pydeq.layers.base import Layer
from pydeq.layers.nested import Branches, Fuse, Residual
from pydeq.layers.single import Activation, Conv, Dense, Flatten, GroupNorm, MaxPool, MeanPool

__all__ = [
    "Activation",
    "Branches",
    "Conv",
    "Dense",
    "Flatten",
    "Fuse",
    "GroupNorm",
    "Layer",
    "MaxPool",
    "MeanPool",
    "Residual",
]
