"""Data: fetchable sources, local files, and partitions over clients.

Nothing is downloaded unless `paceline data fetch` (or `Source.fetch`) is called.
"""

from paceline.data.cache import cache_folder
from paceline.data.files import file_kinds, read_files
from paceline.data.partition import Partition, parse_partition, partition_task
from paceline.data.raw import Part, RawData
from paceline.data.sources import Source, find_source, source_names

__all__ = [
    "Part",
    "Partition",
    "RawData",
    "Source",
    "cache_folder",
    "file_kinds",
    "find_source",
    "parse_partition",
    "partition_task",
    "read_files",
    "source_names",
]
