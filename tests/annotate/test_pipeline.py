import threading
import time

import pytest

from captioner.annotate.pipeline import map_ahead


def test_results_keep_their_order_when_workers_do_not():
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number % 4 == 0 else 0)
        return number

    assert list(map_ahead(slow_first, range(40), num_workers=4, ahead=10)) == list(range(40))


def test_no_more_than_asked_for_is_begun_ahead():
    begun, taken = [], []
    for number in map_ahead(lambda item: begun.append(item) or item, range(1000), num_workers=3, ahead=7):
        taken.append(number)
        time.sleep(0 if number % 100 else 0.02)
        assert len(begun) <= len(taken) + 7
    assert taken == list(range(1000))


def test_threads_end_when_the_reader_stops_early():
    before = threading.active_count()
    results = map_ahead(str, range(1000), num_workers=3, ahead=7)
    next(results)
    results.close()
    assert threading.active_count() == before


def test_an_error_in_a_worker_reaches_the_reader():
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda number: 1 // number, [1, 0, 1], num_workers=2, ahead=2))
