"""What is timed: each function does one job with one library, in a process of its own, as a good user of it would."""
