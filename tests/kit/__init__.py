"""What the tests share: samples, formulas, comparison, devices and programs."""
