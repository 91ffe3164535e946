"""The cache drops the least recently used entries, and never has more bytes than its limit."""

import torch

from stages.encoders.embedding_cache import EmbeddingCache, Embeddings


def rows(count: int) -> Embeddings:
    return Embeddings(torch.zeros(count, 4))


def test_the_least_recently_used_is_forgotten_first() -> None:
    cache = EmbeddingCache(2 * rows(5).nbytes)
    cache.put(b"a", rows(5))
    cache.put(b"b", rows(5))
    assert cache.get(b"a") is not None
    cache.put(b"c", rows(5))
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    assert cache.get(b"c") is not None


def test_deepstack_counts_too() -> None:
    assert Embeddings(torch.zeros(5, 4), torch.zeros(3, 5, 4)).nbytes == 4 * rows(5).nbytes


def test_one_larger_than_the_cache_is_not_kept_and_displaces_nothing() -> None:
    cache = EmbeddingCache(rows(5).nbytes)
    cache.put(b"a", rows(5))
    cache.put(b"large", rows(6))
    assert cache.get(b"a") is not None
    assert cache.get(b"large") is None


def test_a_key_put_twice_counts_once() -> None:
    cache = EmbeddingCache(1000)
    cache.put(b"a", rows(5))
    cache.put(b"a", rows(5))
    assert (len(cache), cache.nbytes) == (1, rows(5).nbytes)


def test_nothing_is_kept_when_it_is_off() -> None:
    cache = EmbeddingCache(0)
    cache.put(b"a", rows(1))
    assert cache.get(b"a") is None
    assert cache.nbytes == 0


def test_hits_and_misses_are_counted() -> None:
    cache = EmbeddingCache(1000)
    cache.get(b"a")
    cache.put(b"a", rows(1))
    cache.get(b"a")
    assert (cache.hits, cache.misses) == (1, 1)
