"""Prepared features: their files, where those are, and batches of them. `FeatureDataset` is the door for reading."""

from .dataset import DataError, FeatureDataset

__all__ = ["DataError", "FeatureDataset"]
