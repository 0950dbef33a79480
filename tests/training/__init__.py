"""Tests of codetune/training."""
