from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from growtas.errors import UnitError
from growtas.units import (
    format_accuracy,
    format_bytes,
    format_count,
    format_limit,
    format_ms,
    format_ratio,
    parse_bytes,
    parse_count,
    parse_latency_ms,
    standard_error,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6M", 6_000_000),
        ("1.3G", 1_300_000_000),
        ("450k", 450_000),
        ("2B", 2 * 10**9),
        (" 5.9 M ", 5_900_000),
        ("5000000", 5_000_000),
        ("1.2e9", 1_200_000_000),
        ("1E6", 1_000_000),
    ],
)
def test_counts(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("5ms", 5.0), ("300us", 0.3), ("0.5 s", 500.0), ("1e1ms", 10.0), ("500\u00b5s", 0.5), (" 500 \u03bcs", 0.5)]
)
def test_latencies(text, value):
    assert parse_latency_ms(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "", "ms", "5 minutes", "5MS", "-5ms", "0ms", "nanms", "infms", "5ms5", "1e400ms"])
def test_latencies_that_are_refused(text):
    with pytest.raises(UnitError, match="max-latency"):
        parse_latency_ms(text, "--max-latency")


@pytest.mark.parametrize("text", ["", "6X", "-6M", "M", "0M", "0", "0.2", "-6", "nan", "1e400", "6,000,000"])
def test_counts_that_are_refused(text):
    with pytest.raises(UnitError):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20MB", 20_000_000),
        ("1 MiB", 1 << 20),
        ("1.5kB", 1500),
        ("512B", 512),
        (".5GB", 500_000_000),
        ("512", 512),
        ("1.2e7", 12_000_000),
    ],
)
def test_amounts_of_memory(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["20M", "MB", "-3MB", "0MB", "20mb", "0.2", "0.2B"])
def test_amounts_of_memory_that_are_refused(text):
    with pytest.raises(UnitError, match="20MB"):
        parse_bytes(text)


@pytest.mark.parametrize(("parse", "text"), [(parse_count, " 5.9 M "), (parse_bytes, "512"), (parse_latency_ms, "4.2345ms")])
def test_what_was_typed_is_kept_and_the_value_is_a_number_as_any(parse, text):
    value = parse(text)
    assert format_limit(value, format_count) == text.strip()
    assert format_limit(copy.deepcopy(value), format_count) == text.strip()
    assert json.loads(json.dumps({"limit": value})) == {"limit": value}
    assert (np.array([value - 0.001, value + 0.001]) <= value).tolist() == [True, False]


def test_a_limit_that_was_not_typed_has_all_of_its_digits():
    assert format_limit(5_867_944, format_count) == "5.867944M"
    assert format_limit(6_000_000, format_count) == "6M"
    assert format_limit(999_999, format_count) == "999.999K"
    assert format_limit(4.2345, format_ms) == "4.2345 ms"
    assert format_limit(1000.0, format_ms) == "1000 ms"
    assert format_limit(22_748_672, format_bytes) == "22.748672 MB"


@pytest.mark.parametrize("text", ["nan", "inf", "8MB/s", "8m b"])
def test_a_refused_count_is_shown_as_it_was_typed(text):
    with pytest.raises(UnitError, match=f"--max-params '{text}' "):
        parse_count(text, "--max-params")


def test_a_bare_number_gets_the_reason():
    with pytest.raises(UnitError, match="'5' has no unit, but a number without a unit is ambiguous; legal units are s, ms, us"):
        parse_latency_ms("5")


@given(st.integers(1, 10**13))
def test_formatted_counts_parse_back(value):
    text = format_count(value)
    assert (parse_count(text) if not text[-1].isdigit() else int(text)) == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("ratio", "text"), [(1.0, "1.00"), (0.1, "0.10"), (0.026, "0.026"), (0.00961, "0.0096"), (12.345, "12.35")]
)
def test_no_ratio_is_written_as_zero(ratio, text):
    assert format_ratio(ratio) == text


def test_formats():
    assert format_count(5_867_944) == "5.87M"
    assert format_count(999_999) == "1000K"
    assert format_ms(4.2111) == "4.21 ms"
    assert format_bytes(22_748_672) == "22.7 MB"


@pytest.mark.parametrize(("right", "count"), [(1, 11), (180, 359), (358, 359), (43_000, 50_000)])
def test_the_standard_error_is_the_spread_of_accuracies_on_other_images(right, count):
    shares = np.random.default_rng(0).binomial(count, right / count, 200_000) / count
    assert standard_error(right / count, count) == pytest.approx(shares.std(), rel=0.01)


@pytest.mark.parametrize("count", [1, 11, 359, 50_000])
def test_an_accuracy_of_all_or_nothing_is_not_certain(count):
    level = 2 * norm.cdf(1) - 1
    for right in (0, count):
        interval = binomtest(right, count).proportion_ci(level, method="wilson")
        assert standard_error(right / count, count) == pytest.approx((interval.high - interval.low) / 2)


def test_accuracies_are_written_as_precisely_as_they_are_known():
    assert format_accuracy(0.873, 500) == "87.3 ± 1.5 %"
    assert format_accuracy(0.873, 50_000) == "87.30 ± 0.15 %"
    assert format_accuracy(1.0, 9) == "100.0 ± 5.0 %"
    assert format_accuracy(0.873, None) == "87.30 %"
