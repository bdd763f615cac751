"""Layers as data: what encoder, cell and decoder of a model are made of. No arrays, no engine."""

from pydeq.layers.base import Layer, Shape, array_shape, is_several, n_values
from pydeq.layers.nested import Branches, Fuse, FusedPath, Residual
from pydeq.layers.single import Activation, Conv, Dense, Flatten, GroupNorm, MaxPool, MeanPool

__all__ = [
    "Activation",
    "Branches",
    "Conv",
    "Dense",
    "Flatten",
    "Fuse",
    "FusedPath",
    "GroupNorm",
    "Layer",
    "MaxPool",
    "MeanPool",
    "Residual",
    "Shape",
    "array_shape",
    "is_several",
    "n_values",
]
