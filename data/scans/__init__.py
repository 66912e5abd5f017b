"""Reading scans of any kind; `read_scan` reads one."""

from data.scans.scan import read_scan

__all__ = ["read_scan"]
