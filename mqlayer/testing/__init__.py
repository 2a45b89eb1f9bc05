"""Tests for those who use mqlayer, and for those who write a backend: helpers, real brokers, faults, the durability suite."""
