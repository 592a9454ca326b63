"""Which rows of a table are read, and in what order (what the orders mean is told in ray_jobs.review_rows)."""

from dataclasses import dataclass

ORDERS = ("random", "stratified", "abstained", "disagreeing", "translated", "second")


@dataclass(frozen=True)
class Choice:
    """Which rows: an order, an SQL filter over the table's columns ("" for all), how many, and the seed."""

    order: str = "stratified"
    query: str = ""
    count: int = 200
    seed: int = 17
