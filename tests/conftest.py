"""Makes ``fakes`` importable from every folder of tests."""
