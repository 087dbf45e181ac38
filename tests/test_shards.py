from concurrent.futures import ThreadPoolExecutor

import pytest

from bert_pipeline.shards import ShardError, map_shards


def square(number):
    if number == 3:
        raise ValueError("three is not allowed")
    return number * number


def shards(*numbers):
    return [(f"number-{n}", (n,)) for n in numbers]


def test_results_come_in_the_order_of_the_shards():
    with ThreadPoolExecutor(4) as executor:
        assert map_shards("squares", square, iter(shards(*range(4, 40))), executor=executor) == [
            n * n for n in range(4, 40)
        ]


def test_worker_processes_give_the_same(monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "2")
    assert map_shards("squares", square, shards(5, 6, 7), total=3) == [25, 36, 49]


@pytest.mark.parametrize("numbers", [(3,), (1, 2, 3, 4)])
def test_the_shard_that_failed_is_named(numbers):
    with pytest.raises(ShardError, match="squares: shard number-3: ValueError: three is not allowed"):
        map_shards("squares", square, shards(*numbers), total=len(numbers))


def test_a_generator_is_drawn_from_as_it_is_needed(monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "1")
    drawn, finished = [], []

    def source():
        for n in range(10, 30):
            drawn.append(n)
            assert len(drawn) - len(finished) <= 4
            yield f"{n}", (n,)

    with ThreadPoolExecutor(1) as executor:
        map_shards("squares", finished.append, source(), executor=executor)
    assert finished == list(range(10, 30))
