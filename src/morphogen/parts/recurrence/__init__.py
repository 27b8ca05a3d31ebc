"""Depth recurrence: blocks run again and again."""
