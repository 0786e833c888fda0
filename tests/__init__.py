"""A package, so that tests import each other's references by name, wherever they are collected from."""
