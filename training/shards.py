"""The error of `data.shards` under the name that measurements outside this repository import it by."""

from .data.shards import DataError

__all__ = ["DataError"]
