"""A bench of tiny models and short texts: everything that the real one measures, within seconds."""

from typing import Any

from longfocus.evaluation.speed import bench as benches
from longfocus.evaluation.speed import suite
from longfocus.evaluation.speed.rows import Report, Row
from longfocus.evaluation.speed.settings import Settings, Shape

SHAPE = Shape(
    layers=4, hidden=32, heads=4, kv_heads=4, vocabulary=50, window=16, memory_layers=(1, 2)
)
TINY = Settings(
    shape=SHAPE,
    grouped_kv_heads=2,
    one_layer=(2,),
    lengths=(64, 256),
    side_length=64,
    exponent_from=64,
    trained_lengths=(256, 512),
    trained_tokens=5120,
    knn_tokens=512,
    decode_steps=2,
    repetitions=2,
)


def measured(settings: Settings, *only: str, **options: Any) -> Report:
    """The report of a bench of these measurements."""
    made = benches.Bench(settings, benches.new_report(settings))
    every = suite.measurements(settings)
    benches.measure(made, every, benches.chosen(every, only), **options)
    return made.report


def named(report: Report, key: str) -> Row:
    """The row whose ratio has a name."""
    (found,) = [row for row in report.rows if row.key == key]
    return found
