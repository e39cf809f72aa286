"""Modules made of flat options, so that tests can vary one of them."""

from lab.grouped import GROUPS, grouped, ssl_module

__all__ = ["GROUPS", "grouped", "ssl_module"]
