"""Makes ``examples`` and ``capability_table`` importable."""
