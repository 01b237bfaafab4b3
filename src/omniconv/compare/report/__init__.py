"""The report of `omniconv compare`: one self-contained HTML file, and the trials as CSV."""

from .files import LIMIT, to_csv, write_report

__all__ = ["LIMIT", "to_csv", "write_report"]
