"""mqlayer beside its peers, interleaved in one run: ``python -m benchmarks``. See README.md here."""
