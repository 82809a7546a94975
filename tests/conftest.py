"""Fixtures for all tests."""

from tests.support.fixtures import platform, platform_of_module

__all__ = ["platform", "platform_of_module"]
