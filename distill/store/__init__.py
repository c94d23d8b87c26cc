"""The trace store: schema, durable shards, DuckDB, and the records that go in and out."""

from distill.store.store import Store

__all__ = ["Store"]
